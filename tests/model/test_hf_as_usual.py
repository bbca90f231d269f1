"""What people do with any model of transformers: attention maps, packed rows, embeddings, offload, compile."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from model.hf import generation_uni_x
from model.hf.attention_uni_x import eager_attention
from model.hf.modeling_uni_x import CACHE, UniXForCausalLM, UniXModel
from tests.model.tiny_hf import CODES, END, KINDS, START, TEXT_IDS, document, left_pad, tiny_config, tiny_model

pytestmark = pytest.mark.slow

ALL_KINDS = {"uni-x": KINDS, "shared": ("shared",) * 2, "mixed": ("moe_hard", "separated", "mot", "shared")}
kinds = pytest.mark.parametrize("kinds", ALL_KINDS.values(), ids=ALL_KINDS)


def packed(documents: list[list[int]]) -> dict[str, torch.Tensor]:
    """One row of several documents, as collators make it."""
    lengths = [len(one) for one in documents]
    return {
        "input_ids": torch.tensor([[token for one in documents for token in one]]),
        "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
        "seq_idx": torch.tensor([[index for index, length in enumerate(lengths) for _ in range(length)]]),
        "cu_seq_lens_q": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
    }


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=2, max_size=4),
    said=st.sets(st.sampled_from(["position_ids", "seq_idx", "cu_seq_lens_q", "attention_mask"]), min_size=1),
    cut=st.integers(1, 40),
    kinds=st.sampled_from(list(ALL_KINDS.values())),
    caching=st.booleans(),
)
@torch.no_grad()
def test_documents_of_a_packed_row_do_not_see_each_other(rows, said, cut, kinds, caching):
    model = tiny_model(seed=1, layer_kinds=kinds)
    documents = [document(lengths, index) for index, lengths in enumerate(rows)]
    row = packed(documents)
    row["attention_mask"] = row["seq_idx"] + 1  # numbers of documents where others write 1
    expected = torch.cat([model(torch.tensor([one])).logits[0] for one in documents])
    inputs = {name: row[name] for name in said}
    found = model(row["input_ids"], use_cache=caching, **inputs).logits[0]
    assert (found - expected).abs().max() <= 1e-5

    if "position_ids" in said:  # in two parts through a cache; with or without a mask of the ordinary kind
        cut, cache = min(cut, len(expected) - 1), DynamicCache(config=model.config)
        parts = []
        for part in (slice(0, cut), slice(cut, None)):
            parts.append(
                model(
                    row["input_ids"][:, part], position_ids=row["position_ids"][:, part], past_key_values=cache
                ).logits[0]
            )
        assert (torch.cat(parts) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_packed_rows_of_text_are_those_of_qwen2():
    ours = tiny_model(seed=1, layer_kinds=("shared",) * 2)
    config = Qwen2Config(
        vocab_size=ours.config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        use_cache=False,
    )
    base = Qwen2ForCausalLM(config).eval()
    base.load_state_dict(ours.state_dict())
    row = packed([document([7]), document([4], 1), document([9], 2)])
    inputs = {name: row[name] for name in ("input_ids", "position_ids")}
    assert (ours(**inputs).logits - base(**inputs).logits).abs().max() <= 1e-4


def test_packed_rows_that_do_not_fit_are_refused():
    model, ids = tiny_model(), torch.tensor([document([6])])
    with pytest.raises(ValueError, match="cu_seq_lens ends at 5"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match="seq_idx has shape"):
        model(ids, seq_idx=torch.zeros(1, 3))
    for wrong in (torch.arange(5)[None], torch.arange(6).expand(3, 1, 6), torch.arange(6)):
        with pytest.raises(ValueError, match="position_ids has shape .* give the shape of input_ids, .1, 6."):
            model(ids, position_ids=wrong)
    with pytest.raises(ValueError, match="cu_seq_lens_q and cu_seq_lens_k differ"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 2, 6]), cu_seq_lens_k=torch.tensor([0, 3, 6]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k", "cu_seq_lens"])
def test_ends_of_packed_documents_are_heard_under_every_name(name):
    model, row = tiny_model(), packed([document([3]), document([4])])
    expected = model(row["input_ids"], position_ids=row["position_ids"]).logits
    found = model(row["input_ids"], **{name: row["cu_seq_lens_q"]}).logits
    assert (found - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_a_row_with_a_padded_neighbour_and_positions_of_generate_is_one_document():
    model = tiny_model(seed=2)
    ids, mask = left_pad([document([4, 3]), document([9, 4, 3], 1)])
    mask[1, 3] = 0  # a hole
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)  # as transformers' generate counts them
    found = model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    assert torch.equal(found, model(ids, attention_mask=mask).logits[mask.bool()])


@kinds
@torch.no_grad()
def test_every_kind_of_attention_gives_the_same_and_eager_its_weights(kinds):
    model = tiny_model(seed=3, layer_kinds=kinds)
    ids, mask = left_pad([document([4, 5, 3]), document([2, 3], 1)])
    expected = model(ids, attention_mask=mask, output_hidden_states=True)
    assert expected.attentions is None and len(expected.hidden_states) == len(kinds) + 1
    maps = model(ids, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation("eager")
    found = model(ids, attention_mask=mask, output_attentions=True)
    assert (found.logits - expected.logits)[mask.bool()].abs().max() <= 1e-5
    assert all(torch.equal(one, other) for one, other in zip(maps, found.attentions, strict=True))
    visual = model.config.is_visual(ids) & mask.bool()
    for kind, weights in zip(kinds, found.attentions, strict=True):
        assert weights.shape == (2, 4, ids.shape[1], ids.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert not weights.triu(1).any()
        across = weights[:, 0][visual[:, :, None] != visual[:, None, :]]
        assert across.any() != (kind == "separated") or len(kinds) == 2
    grown = model.generate(
        ids, attention_mask=mask, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True
    )
    assert len(grown.attentions) == 2 and grown.attentions[1][0].shape == (2, 4, 1, ids.shape[1] + 1)


@torch.no_grad()
def test_attention_of_others_gets_a_mask_for_every_row(monkeypatch):
    """It is read by the row's number, beyond its end where there is one for all. On a CPU flex overwrites memory (2.13.0)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shapes = []

    def own(module, q, k, v, mask, scaling, **options):
        shapes.append(tuple(mask.shape))
        return eager_attention(module, q, k, v, mask == 0, scaling)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "own", own)
    model = tiny_model(seed=3)
    ids, mask = left_pad([document([4, 5, 3]), document([2, 3], 1)])
    for row, seen in ((ids, mask), (ids[:1].repeat(3, 1), None)):
        model.set_attn_implementation("sdpa")
        expected = model(row, attention_mask=seen).logits
        model.set_attn_implementation("own")
        real = torch.ones_like(row).bool() if seen is None else seen.bool()
        assert (model(row, attention_mask=seen).logits - expected)[real].abs().max() <= 1e-5
        assert set(shapes) == {(len(row), 1, row.shape[1], row.shape[1])}
        shapes.clear()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="overwrites memory on a CPU .* use 'sdpa' or 'eager'"):
        model(ids)


def test_settings_of_the_configuration_are_heeded():
    model = UniXForCausalLM(tiny_config(output_hidden_states=True, attn_implementation="eager"))
    assert len(model(torch.tensor([document([4])])).hidden_states) == len(KINDS) + 1
    model.config.output_attentions = True
    assert len(model(torch.tensor([document([4])])).attentions) == len(KINDS)
    assert model.config.bos_token_id is None
    with pytest.raises((ValueError, ImportError), match="(?i)flash"):
        tiny_model().set_attn_implementation("flash_attention_2")


@kinds
@torch.no_grad()
def test_embeddings_are_taken_with_their_modality(kinds):
    model = tiny_model(seed=4, layer_kinds=kinds)
    ids = torch.tensor([document([3, 4, 2])])
    embedded, visual = model.get_input_embeddings()(ids), model.config.is_visual(ids)
    assert torch.equal(model(inputs_embeds=embedded, modality=visual).logits, model(ids).logits)
    found = model.generate(inputs_embeds=embedded, modality=visual, max_new_tokens=4, do_sample=False)
    assert found.tolist() == model.generate(ids, max_new_tokens=4, do_sample=False)[:, ids.shape[1] :].tolist()
    if kinds == ALL_KINDS["shared"]:
        assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)


@torch.no_grad()
def test_the_model_without_its_head_takes_the_same_cache():
    model = tiny_model(seed=5)
    ids = torch.tensor([document([3, 4, 2])])
    first = model.model(ids[:, :5], use_cache=True)
    again = model.model(ids[:, 5:], past_key_values=first[1])
    assert (again.last_hidden_state - model.model(ids).last_hidden_state[:, 5:]).abs().max() <= 1e-5
    assert len(first[1]) == len(KINDS)


def pictures(model, **options) -> list[list[int]]:
    ids, mask = left_pad([[*document([3]), START], [*document([2, 3, 2], 1), START]])
    return model.generate_images(
        ids,
        mask,
        torch.tensor([7, 7, START]),
        num_codes=6,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        **options,
    ).tolist()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload", "device_map"])
def test_offloaded_weights_draw_the_same_picture(tmp_path, way, tied):
    import accelerate

    model = tiny_model(seed=6, tie_word_embeddings=tied)
    expected = pictures(model)
    model.save_pretrained(tmp_path / "model")
    model = UniXForCausalLM.from_pretrained(tmp_path / "model")
    if way == "cpu_offload":
        model = accelerate.cpu_offload(model, "cpu")
    elif way == "disk_offload":
        model = accelerate.disk_offload(model, tmp_path / "offload", "cpu")
    else:
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu" if tied else "disk"}
        for name, part in [
            ("layers", model.model.layers.named_children()),
            ("vision_layers", model.model.vision_layers.items()),
        ]:
            places |= {f"model.{name}.{index}": "disk" if int(index) % 2 else "cpu" for index, _ in part}
        model = UniXForCausalLM.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
        )
    assert pictures(model) == expected


def test_the_model_can_be_split_between_its_branches():
    import accelerate

    with torch.device("meta"):
        model = UniXForCausalLM(tiny_config())
    classes = model._no_split_modules if isinstance(model._no_split_modules, list) else list(model._no_split_modules)
    largest = max(sum(p.numel() * 4 for p in layer.parameters()) for layer in model.model.layers)
    budget = {0: 3 * largest, 1: 3 * largest, "cpu": 10**9}
    places = accelerate.infer_auto_device_map(model, max_memory=budget, no_split_module_classes=classes)
    assert {0, 1} <= set(places.values()) and all(name.count(".") <= 2 for name in places), places


def test_a_changed_head_is_heard():
    model = tiny_model(seed=6, tie_word_embeddings=False)
    expected = pictures(model)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert len(pictures(quantized)[0]) == 6
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.roll(1, -1))
    assert pictures(model) != expected


def test_rows_of_codes_cannot_be_lost_by_a_resize():
    model = tiny_model()
    rows = model.get_input_embeddings().weight.clone()
    for number in (None, 5, TEXT_IDS, TEXT_IDS + CODES):
        assert model.resize_token_embeddings(number) is model.get_input_embeddings()
    for number in (TEXT_IDS + 1, TEXT_IDS + CODES + 1):
        with pytest.raises(ValueError, match=f"from {TEXT_IDS} on they are picture codes"):
            model.resize_token_embeddings(number)
    assert torch.equal(model.get_input_embeddings().weight, rows)


def test_codes_come_only_within_a_picture():
    model = tiny_model(seed=7)
    torch.manual_seed(0)
    for prompt in (document([3]), document([3, 2]), [*document([2]), START]):
        ids = torch.tensor([prompt]).repeat(8, 1)
        for options in ({"do_sample": True}, {"num_beams": 3}, {"do_sample": True, "cache_implementation": "static"}):
            for row in model.generate(ids, max_new_tokens=10, eos_token_id=None, **options).tolist():
                inside = False
                for place, token in enumerate(row):
                    assert place < len(prompt) or inside == (token >= TEXT_IDS or token == END), row
                    inside = token == START or (inside and token != END)


@torch.no_grad()
def test_one_graph_without_breaks_gives_the_same():
    """Of a model with layers of all kinds, as in the test of decoding: compiling takes seconds."""
    model = tiny_model(seed=8, layer_kinds=ALL_KINDS["mixed"])
    ids, mask = left_pad([document([4, 5, 3]), document([2, 3], 1)])
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for caching in (False, True):
        found = compiled(ids, attention_mask=mask, use_cache=caching)
        assert (found.logits - expected)[mask.bool()].abs().max() <= 1e-5
    following = {"input_ids": ids[:, -1:], "attention_mask": torch.nn.functional.pad(mask, (0, 1), value=1)}
    plain = model(ids, attention_mask=mask, use_cache=True)
    assert torch.equal(
        compiled(**following, past_key_values=found[CACHE]).logits.argmax(-1),
        model(**following, past_key_values=plain[CACHE]).logits.argmax(-1),
    )
    row = packed([document([4, 3]), document([5], 1)])
    del row["cu_seq_lens_q"]
    expected = model(**row, use_cache=False).logits
    assert (compiled(**row, use_cache=False).logits - expected).abs().max() <= 1e-5
    exported = torch.export.export(model, (), {"input_ids": row["input_ids"], "use_cache": False}, strict=False)
    found = exported.module()(input_ids=row["input_ids"], use_cache=False).logits
    assert (found - model(row["input_ids"]).logits).abs().max() <= 1e-5


def test_the_saved_folder_names_a_class_for_every_auto_class(tmp_path):
    UniXModel(tiny_config()).save_pretrained(tmp_path)
    from model.hf.configuration_uni_x import AUTO_MAP, UniXConfig

    assert UniXConfig.from_pretrained(tmp_path).auto_map == AUTO_MAP


def test_decoding_is_one_graph_over_a_static_cache():
    """Neither the ids, nor how far a picture or a text is, makes another graph: one for each kind of step."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = tiny_model(seed=9, layer_kinds=ALL_KINDS["mixed"])
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    expected = pictures(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generation_uni_x,
            "compiled_forward",
            lambda one: torch.compile(one.forward, fullgraph=True, dynamic=False, backend=counter),
        )
        for _ in range(2):
            assert pictures(model, compiled=True) == expected
    assert counter.frame_count == 1

    ids, mask = left_pad([document([4, 3]), document([2, 3], 1)])
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, logits_processor=model.text_only(), **options)
    torch._dynamo.reset()
    counter.clear()
    model.compile(fullgraph=True, dynamic=False, backend=counter)
    found = model.generate(ids, logits_processor=model.text_only(), cache_implementation="static", **options)
    assert torch.equal(found, expected) and counter.frame_count == 2  # the prompt, and every step after it


def test_more_shapes_than_torch_recompiles_by_itself_can_be_compiled():
    """Its limit is 8, and beyond it a whole graph is an error."""
    model = tiny_model(seed=9, layer_kinds=("separated", "shared"))  # ten compilations, whose time goes by layers
    ids, _ = left_pad([[*document([3]), START]])
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        compile_as_usual = torch.compile
        eager = {"backend": "eager", "options": None}
        patch.setattr(torch, "compile", lambda *args, **options: compile_as_usual(*args, **{**options, **eager}))
        for batch in range(1, 11):
            options = {"num_codes": 2, "guidance_scale": 1.0, "temperature": 0.0}
            drawn = model.generate_images(ids.expand(batch, -1), compiled=True, **options)
            assert torch.equal(drawn, model.generate_images(ids.expand(batch, -1), **options))
