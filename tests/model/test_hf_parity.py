"""Invariant 1, text-only input gives the base LLM's logits; and invariant 4 inside a separated layer, no leakage."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from model.hf.attention_uni_x import attention_masks
from model.hf.modeling_uni_x import UniXForCausalLM
from model.hf.routing_uni_x import Keys
from tests.model.tiny_hf import (
    CODES,
    END,
    EOS,
    KINDS,
    QWEN3,
    QWEN25,
    START,
    TEXT_IDS,
    document,
    left_pad,
    randomise,
    tiny_config,
    tiny_model,
)

LLAMA = {"attention_bias": False, "qk_norm": False}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@torch.no_grad()
def test_stretched_positions_are_the_base_llms_and_are_saved(scaling, tmp_path):
    """A plain class of transformers reads them from the export's config.json, too."""
    base = base_llm("llama", False, rope_scaling=dict(scaling))
    model = grown_from(base, False, **LLAMA, rope_scaling=dict(scaling))
    ids = torch.tensor([document([100])])
    assert (model(ids).logits[..., :TEXT_IDS] - base(ids).logits).abs().max() <= 1e-5
    model.save_pretrained(tmp_path)
    opened = UniXForCausalLM.from_pretrained(tmp_path)
    assert opened.config.rope_scaling == scaling and torch.equal(opened(ids).logits, model(ids).logits)
    plain = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert (plain(ids).logits[..., :TEXT_IDS] - base(ids).logits).abs().max() <= 1e-5


def base_llm(flavour: str, tied: bool, **changes) -> torch.nn.Module:
    config_class, model_class = {
        "qwen25": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[flavour]
    ours = tiny_config()
    config = config_class(
        vocab_size=TEXT_IDS,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        head_dim=ours.head_dim,
        rope_theta=ours.rope_theta,
        tie_word_embeddings=tied,
        max_position_embeddings=256,
        **changes,
    )
    return randomise(model_class(config), seed=5)


def grown_from(base: torch.nn.Module, tied: bool, **flavour) -> UniXForCausalLM:
    """Uni-X with the base LLM's weights, nothing dropped, and rows for the codes below the table's."""
    model = tiny_model(seed=6, tie_word_embeddings=tied, **flavour)
    weights = base.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat((weights[name], model.state_dict()[name][TEXT_IDS:]))
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(name.startswith("model.vision_layers.") for name in result.missing_keys)
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "name, flavour", [("qwen25", QWEN25), ("qwen3", QWEN3), ("llama", LLAMA)], ids=lambda x: str(x)[:6]
)
@torch.no_grad()
def test_text_logits_are_the_base_llms(name, flavour, tied):
    base = base_llm(name, tied)
    model = grown_from(base, tied, **flavour)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, START, (3, 40), generator=generator)
    expected = base(ids).logits
    assert (model(ids).logits[..., :TEXT_IDS] - expected).abs().max() <= 1e-4

    rows = [ids[0, :7].tolist(), ids[1].tolist()]
    padded, mask = left_pad(rows)
    logits = model(padded, attention_mask=mask).logits[..., :TEXT_IDS]
    assert (logits[0, -7:] - base(ids[:1, :7]).logits[0]).abs().max() <= 1e-4
    assert (logits[1] - expected[1]).abs().max() <= 1e-4
    logits = model(ids, logits_to_keep=1).logits
    assert logits.shape == (3, 1, TEXT_IDS + CODES) and (logits[..., :TEXT_IDS] - expected[:, -1:]).abs().max() <= 1e-4


@torch.no_grad()
def test_a_plain_qwen_class_reads_the_text_path(tmp_path):
    model = tiny_model(seed=3, **QWEN3)
    model.save_pretrained(tmp_path)
    plain, info = Qwen3ForCausalLM.from_pretrained(
        tmp_path,
        output_loading_info=True,
        config=Qwen3Config(**{k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "auto_map")}),
    )
    assert not info["missing_keys"]
    ids = torch.tensor([document([20])])
    assert (plain.eval()(ids).logits - model(ids).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("plain", [Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM], ids=lambda one: one.__name__)
@torch.no_grad()
def test_a_folder_that_a_model_saved_says_whether_its_head_is_tied(plain, tied, tmp_path):
    """Plain classes take an absent key for "not tied" (4.57.6), Uni-X and transformers itself for "tied"."""
    flavour = {Qwen2ForCausalLM: QWEN25, Qwen3ForCausalLM: QWEN3, LlamaForCausalLM: LLAMA}[plain]
    model = tiny_model(seed=7, tie_word_embeddings=tied, layer_kinds=("shared",) * 2, **flavour)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["tie_word_embeddings"] is tied
    values = {key: value for key, value in values.items() if key not in ("auto_map", "architectures", "layer_kinds")}
    values["model_type"] = plain.config_class.model_type
    (tmp_path / "config.json").write_text(json.dumps(values))
    ids = torch.tensor([document([9])])
    opened = plain.from_pretrained(tmp_path)
    assert opened.config.tie_word_embeddings is tied
    assert (opened(ids).logits - model(ids).logits).abs().max() <= 1e-5


@torch.no_grad()
def test_text_only_input_never_computes_the_vision_branch():
    model = tiny_model(seed=1)
    for branch in model.model.vision_layers.values():
        branch.forward = None  # a call would raise
    model(torch.tensor([document([12])]))
    with pytest.raises(TypeError):
        model(torch.tensor([document([3, 4])]))


def test_loss_is_the_mean_over_labels_that_count():
    model = tiny_model(seed=2)
    ids = torch.tensor([document([6, 5, 4])])
    labels = ids.clone()
    labels[:, :7] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, 6:-1], ids[0, 7:])
    torch.testing.assert_close(output.loss, expected)


def test_gradients_reach_both_branches_and_checkpointing_keeps_them():
    ids = torch.tensor([document([6, 5, 4])])
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(seed=2).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=3, max_size=6), seed=st.integers(0, 1000), data=st.data())
@torch.no_grad()
def test_vision_tokens_change_no_text_inside_the_separated_block(lengths, seed, data):
    model = tiny_model(seed=4, layer_kinds=("separated", "separated", "shared", "separated"))
    ids = torch.tensor([document(lengths, seed)])
    visual = model.config.is_visual(ids)[0]
    codes = (ids[0] >= TEXT_IDS).nonzero().flatten().tolist()
    place = data.draw(st.sampled_from(codes))
    changed = ids.clone()
    changed[0, place] = TEXT_IDS + (int(ids[0, place]) - TEXT_IDS + 1) % CODES
    before, after = (model(x, output_hidden_states=True).hidden_states for x in (ids, changed))
    for depth in (1, 2):  # outputs of the two separated layers
        assert torch.equal(before[depth][0, ~visual], after[depth][0, ~visual])
        assert not torch.equal(before[depth][0, visual], after[depth][0, visual])
    if (~visual)[place:].any():  # the shared layer then joins what the block kept apart
        later_text = ~visual & (torch.arange(ids.shape[1]) > place)
        assert not torch.equal(before[3][0, later_text], after[3][0, later_text])


@torch.no_grad()
def test_text_tokens_change_no_vision_inside_the_separated_block():
    model = tiny_model(seed=4, **QWEN3)
    ids = torch.tensor([document([5, 6, 3])])
    visual = model.config.is_visual(ids)[0]
    changed = ids.clone()
    changed[0, 1] = (ids[0, 1] + 1) % START
    before, after = (model(x, output_hidden_states=True).hidden_states[1][0] for x in (ids, changed))
    assert torch.equal(before[visual], after[visual]) and not torch.equal(before[~visual], after[~visual])


@settings(max_examples=15, deadline=None)
@given(pads=st.lists(st.integers(0, TEXT_IDS + CODES - 1), min_size=6, max_size=6))
@torch.no_grad()
def test_what_padding_holds_changes_nothing(pads):
    model = tiny_model(seed=8)
    ids, mask = left_pad([document([4, 5, 3]), document([2, 3])])
    assert ids.shape[1] - int(mask[1].sum()) >= len(pads)
    expected = model(ids, attention_mask=mask)
    filled = ids.clone()
    filled[1, : len(pads)] = torch.tensor(pads)
    found = model(filled, attention_mask=mask)
    assert found.logits.isfinite().all()
    assert torch.equal(found.logits[mask.bool()], expected.logits[mask.bool()])


@torch.no_grad()
def test_a_masked_token_in_the_middle_is_as_if_it_were_not_there():
    model = tiny_model(seed=8)
    with_hole, without = document([4, 5, 6]), document([4, 5, 6])
    del without[3]
    mask = torch.ones(1, len(with_hole), dtype=torch.long)
    mask[0, 3] = 0
    logits = model(torch.tensor([with_hole]), attention_mask=mask).logits[mask.bool()]
    assert (logits - model(torch.tensor([without])).logits[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("cached", [0, 3])
def test_every_row_of_a_mask_sees_something(cached):
    """An empty row is 0/0 in some attention kernels; the one on CPU would forgive it."""
    padding = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]])
    kinds = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 1, 2, 2, 1, 1]])
    new, keys = Keys(kinds[:, cached:], None), Keys(kinds, None)
    masks = attention_masks(torch.arange(cached, 6), 6, padding, new, keys)
    assert all(mask.shape == (2, 1, 6 - cached, 6) and mask.any(-1).all() for mask in masks)


@torch.no_grad()
def test_bfloat16_stays_near_float32_with_mixed_tokens_and_padding():
    ids, mask = left_pad([document([4, 5, 3]), document([2, 3])])
    expected = tiny_model(seed=8, **QWEN3)(ids, attention_mask=mask).logits
    found = tiny_model(seed=8, **QWEN3).bfloat16()(ids, attention_mask=mask).logits
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected)[mask.bool()].abs().max()
    assert error <= 0.05 * expected.abs().max()


def test_markers_are_routed_as_published():
    config = tiny_config()
    ids = torch.tensor([0, START, END, EOS, TEXT_IDS - 1, TEXT_IDS, TEXT_IDS + CODES - 1])
    assert config.is_visual(ids).tolist() == [False, True, False, False, False, True, True]


def test_initial_weights_follow_the_config():
    model = UniXForCausalLM(tiny_config(initializer_range=0.5))
    weight = model.model.vision_layers["0"].mlp.up_proj.weight
    assert 0.4 < weight.std() < 0.6
    assert model.model.layers[0].self_attn.q_proj.bias.abs().max() == 0 and (model.model.norm.weight == 1).all()


@torch.no_grad()
def test_save_and_load_round_trip(tmp_path):
    for index, tied in enumerate((True, False)):
        model = tiny_model(seed=9, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(index))
        again = UniXForCausalLM.from_pretrained(tmp_path / str(index))
        ids = torch.tensor([document([4, 5, 3])])
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
        assert again.config.layer_kinds == list(KINDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_kinds": ["shared", "swin", "shared", "shared"]}, "layer_kinds has .'swin'."),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"vocab_size": TEXT_IDS}, "every code needs an embedding row"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_inputs_that_cannot_be_routed_are_refused():
    model = tiny_model()
    ids = torch.tensor([document([4])])
    with pytest.raises(ValueError, match="pass modality"):
        model(inputs_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(TypeError, match="token_weights"):
        model(ids, token_weights=1)
    with pytest.raises(ValueError, match=r"give \[batch, tokens\]"):
        model(ids, attention_mask=torch.ones(1, 1, 4, 4))
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"here \[1, 8\]"):
        model(ids, attention_mask=torch.ones(1, 4), past_key_values=cache)
