"""Invariant 5 for the cache (cached decoding = one pass), and generation of text and of pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from model.hf.cache_uni_x import reserved_cache
from model.hf.sampling_uni_x import SeededSamplingLogitsProcessor
from tests.model.tiny_hf import CODES, KINDS, QWEN3, START, TEXT_IDS, document, left_pad, tiny_model

TOLERANCE = 1e-5
UNCONDITIONAL = torch.tensor([7, 7, START])
ALL_KINDS = {
    "uni-x": KINDS,
    "mot": ("mot",) * 3,
    "moe_hard": ("shared", "moe_hard") * 2,
    "all four": ("moe_hard", "separated", "mot", "shared"),
}


@torch.no_grad()
def cached_logits(model, ids, mask, chunks, cache) -> torch.Tensor:
    """Logits of `ids` [b, s] fed in `chunks` (their lengths add up to s) through one cache."""
    parts, start = [], 0
    for length in chunks:
        end = start + length
        part = None if mask is None else mask[:, :end]
        output = model(ids[:, start:end], attention_mask=part, past_key_values=cache, use_cache=True)
        assert output.past_key_values is cache
        parts.append(output.logits)
        start = end
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("flavour", [{}, QWEN3], ids=["qwen25", "qwen3"])
@pytest.mark.parametrize("kinds", ALL_KINDS.values(), ids=ALL_KINDS)
@pytest.mark.parametrize("make_cache", ["config", "plain", "static", "reserved"])
@torch.no_grad()
def test_token_by_token_equals_one_pass(flavour, make_cache, kinds):
    model = tiny_model(seed=1, layer_kinds=kinds, **flavour)
    ids = torch.tensor([document([5, 6, 4, 3, 2])])
    cache = {
        "config": lambda: DynamicCache(config=model.config),
        "plain": DynamicCache,
        "static": lambda: StaticCache(config=model.config, max_cache_len=ids.shape[1] + 3),
        "reserved": lambda: reserved_cache(len(model.config.layer_kinds), ids.shape[1]),
    }[make_cache]()
    logits = cached_logits(model, ids, None, [1] * ids.shape[1], cache)
    assert (logits - model(ids).logits).abs().max() <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.sets(st.integers(1, 30)),
    seed=st.integers(0, 1000),
    kinds=st.sampled_from(list(ALL_KINDS.values())),
)
@torch.no_grad()
def test_padded_batches_in_chunks_equal_one_pass_of_each_row(rows, cuts, seed, kinds):
    model = tiny_model(seed=2, layer_kinds=kinds)
    documents = [document(lengths, seed + index) for index, lengths in enumerate(rows)]
    ids, mask = left_pad(documents)
    bounds = [0, *sorted(cut for cut in cuts if cut < ids.shape[1]), ids.shape[1]]
    chunks = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    logits = cached_logits(model, ids, mask, chunks, DynamicCache(config=model.config))
    assert logits.isfinite().all()
    for index, row in enumerate(documents):
        alone = model(torch.tensor([row])).logits[0]
        assert (logits[index, -len(row) :] - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kinds", ALL_KINDS.values(), ids=ALL_KINDS)
@torch.no_grad()
def test_cache_can_be_reordered_cropped_repeated_and_selected(kinds):
    model = tiny_model(seed=3, layer_kinds=kinds)
    documents = [document([3, 6, 2]), document([5, 4, 2], seed=1)]
    ids, mask = left_pad(documents)
    base = model(ids, attention_mask=mask, use_cache=True).past_key_values
    following = torch.tensor([[START, TEXT_IDS + 5], [4, 5]])

    def continued(cache, ids, mask, following):
        grown = torch.cat((mask, torch.ones_like(following)), dim=1)
        expected = model(torch.cat((ids, following), dim=1), attention_mask=grown).logits[:, -following.shape[1] :]
        found = model(following, attention_mask=grown, past_key_values=cache).logits
        assert (found - expected).abs().max() <= TOLERANCE

    cache = copy.deepcopy(base)
    order = torch.tensor([1, 0])
    cache.reorder_cache(order)
    continued(cache, ids[order], mask[order], following)

    cache = copy.deepcopy(base)
    cache.crop(-4)
    continued(cache, ids[:, :-4], mask[:, :-4], following)

    cache = copy.deepcopy(base)
    cache.batch_repeat_interleave(2)
    continued(cache, *(x.repeat_interleave(2, dim=0) for x in (ids, mask, following)))

    cache = copy.deepcopy(base)
    cache.batch_select_indices(torch.tensor([1]))
    continued(cache, ids[1:], mask[1:], following[1:])


def test_a_cache_that_others_filled_says_which_tokens_are_of_pictures():
    model = tiny_model(seed=3)
    ids, prefix = torch.tensor([document([4])]), torch.rand(2, 1, 2, 3, 8)

    def filled():
        cache = DynamicCache(config=model.config)
        for layer in range(len(KINDS)):
            cache.update(*prefix, layer)
        return cache

    with pytest.raises(ValueError, match=r"or modality \[1, 7\]"):
        model(ids, past_key_values=filled())
    told = model(ids, past_key_values=filled(), modality=torch.zeros(1, 7)).logits
    assert not torch.equal(told, model(ids, past_key_values=filled(), modality=torch.eye(1, 7)).logits)


@torch.no_grad()
def greedy(model, ids, steps) -> torch.Tensor:
    """Greedy continuation of one document by whole passes, without any cache."""
    for _ in range(steps):
        logits = model.text_only()(None, model(ids, use_cache=False).logits[:, -1])
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("settings_", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_greedy_text_of_a_padded_batch_is_that_of_each_row(settings_):
    model = tiny_model(seed=5)
    documents = [document([0, 6, 3]), document([7, 4, 2], seed=1), document([4], seed=2)]
    ids, mask = left_pad(documents)
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        logits_processor=model.text_only(),
        **settings_,
    )
    for row, result in zip(documents, found, strict=True):
        assert result[-len(row) - 6 :].tolist() == greedy(model, torch.tensor([row]), 6)[0].tolist()


def test_beam_search_scores_are_those_of_whole_passes():
    model = tiny_model(seed=6)
    documents = [document([3, 6, 3]), document([4], seed=1)]
    ids, mask = left_pad(documents)
    result = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=5,
        num_beams=4,
        num_return_sequences=2,
        do_sample=False,
        eos_token_id=None,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for index, sequence in enumerate(result.sequences):
        row = documents[index // 2]
        alone = sequence[-len(row) - 5 :]
        logits = model(alone[None]).logits[0, len(row) - 1 : -1]
        score = logits.log_softmax(-1).gather(1, alone[len(row) :, None]).sum()
        assert abs(score - result.sequences_scores[index]) <= 1e-4


def test_sampled_text_is_text_only_and_repeats_with_its_seed():
    model = tiny_model(seed=7)
    ids = torch.tensor([document([3, 6, 3])]).repeat(4, 1)

    def sample(seed, **options):
        torch.manual_seed(seed)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=True, **options)
        return found[:, ids.shape[1] :]

    new = sample(1, logits_processor=model.text_only())
    assert not model.config.is_visual(new).any()
    assert torch.equal(new, sample(1, logits_processor=model.text_only()))
    assert model.config.is_visual(
        sample(1, free_codes=True)
    ).any()  # without the constraint this random model does draw codes


def picture_by_whole_passes(model, prompt, steps, guidance) -> list[int]:
    """Greedy codes from the definition of guidance, one prompt at a time and without a cache."""
    conditional, unconditional, codes = prompt, UNCONDITIONAL.tolist(), []
    for _ in range(steps):
        with torch.no_grad():
            c, u = (model(torch.tensor([x])).logits[0, -1, TEXT_IDS:] for x in (conditional, unconditional))
        code = int((u + guidance * (c - u)).argmax())
        codes.append(code)
        conditional, unconditional = [*conditional, TEXT_IDS + code], [*unconditional, TEXT_IDS + code]
    return codes


@pytest.mark.parametrize("guidance", [1.0, 4.0, 0.0])
@pytest.mark.parametrize("lengths", [([5], [5]), ([2], [9]), ([1], [3, 4, 2])], ids=["equal", "padded", "with picture"])
@pytest.mark.parametrize("kinds", [KINDS, ALL_KINDS["mot"], ALL_KINDS["moe_hard"]], ids=["uni-x", "mot", "moe_hard"])
def test_pictures_follow_the_definition_of_guidance(guidance, lengths, kinds):
    model = tiny_model(seed=8, layer_kinds=kinds)
    prompts = [[*document(row, seed), START] for seed, row in enumerate(lengths)]
    ids, mask = left_pad(prompts)
    codes = model.generate_images(
        ids, mask, unconditional_ids=UNCONDITIONAL, num_codes=6, guidance_scale=guidance, temperature=0
    )
    assert codes.shape == (2, 6)
    assert codes.tolist() == [picture_by_whole_passes(model, prompt, 6, guidance) for prompt in prompts]


def test_unconditional_half_is_skipped_at_guidance_one():
    model, sizes = tiny_model(seed=8), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ids = torch.tensor([[*document([4]), START]])
    model.generate_images(ids, num_codes=2, guidance_scale=1.0)
    model.generate_images(ids, unconditional_ids=UNCONDITIONAL, num_codes=1, guidance_scale=2.0)
    assert sizes == [1, 1, 2]


def test_a_picture_depends_on_its_own_generator_only():
    model = tiny_model(seed=9)
    prompts = [[*document([length], seed), START] for seed, length in enumerate((3, 8, 5))]

    def draw(rows, seeds):
        ids, mask = left_pad(rows)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model.generate_images(
            ids, mask, UNCONDITIONAL, num_codes=8, guidance_scale=2.0, top_k=16, top_p=0.95, generator=generators
        )

    together = draw(prompts, [1, 2, 3])
    for index, prompt in enumerate(prompts):
        assert torch.equal(draw([prompt], [index + 1])[0], together[index])
    assert not torch.equal(draw(prompts, [4, 5, 6]), together)

    ids, mask = left_pad(prompts)
    one = [
        model.generate_images(ids, mask, num_codes=8, guidance_scale=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(one[0], one[1]) and not torch.equal(one[0], one[2])


def test_sampling_follows_the_probabilities():
    model = tiny_model(seed=10)
    prompt = [*document([4]), START]
    draws = 4000
    probabilities = model(torch.tensor([prompt])).logits[0, -1, TEXT_IDS:].div(0.7).softmax(-1)
    codes = model.generate_images(
        torch.tensor([prompt]).repeat(draws, 1),
        num_codes=1,
        guidance_scale=1.0,
        temperature=0.7,
        generator=torch.Generator().manual_seed(0),
    )
    frequency = torch.bincount(codes.flatten(), minlength=CODES) / draws
    assert ((frequency - probabilities).abs() <= 5 * (probabilities / draws).sqrt() + 1e-3).all()

    kept = probabilities.topk(5).indices
    codes = model.generate_images(
        torch.tensor([prompt]).repeat(200, 1),
        num_codes=1,
        guidance_scale=1.0,
        top_k=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert set(codes.flatten().tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-50])
def test_the_coldest_temperatures_take_the_likeliest(temperature):
    """Logits divided by so little would leave float32's range, and probabilities that are NaN draw the first id."""
    model, prompt = tiny_model(seed=10), torch.tensor([[*document([4]), START]])
    options = {"num_codes": 6, "guidance_scale": 1.0, "top_p": 0.9}
    assert torch.equal(
        model.generate_images(prompt, temperature=temperature, **options),
        model.generate_images(prompt, temperature=0, **options),
    )
    scores = torch.tensor([[1.0, 5.0, -3.0]])
    drawn = SeededSamplingLogitsProcessor([torch.Generator()], [], temperature=temperature)(prompt, scores)
    assert drawn.argmax() == 1


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        ([[1, 2, 3]], {}, r"append <\|vision_start\|> \(id 80\)"),
        ([[1, START]], {"attention_mask": torch.tensor([[1, 0]])}, "pad on the left"),
        ([[1, START]], {"guidance_scale": 2.0}, "pass unconditional_ids"),
        ([[1, START]], {"guidance_scale": 2.0, "unconditional_ids": torch.tensor([1, 2])}, "unconditional_ids .* must"),
        ([[1, START]], {"num_codes": 0}, "num_codes >= 1"),
        ([[1, START]], {"top_p": 0.0}, "0 < top_p <= 1"),
        ([[1, START]], {"temperature": -1.0}, "temperature >= 0"),
        ([[1, START]], {"generator": []}, "0 generators for 1 prompts"),
    ],
)
def test_requests_for_pictures_that_cannot_be_met_are_refused(ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate_images(torch.tensor(ids), **{"num_codes": 2, "guidance_scale": 1.0, **arguments})


def test_text_generation_stops_at_the_end_of_text():
    model = tiny_model(seed=11)
    ids = torch.tensor([document([5])])

    def generate(**options):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **options)
        return found[0, 5:].tolist()

    free = generate(eos_token_id=None)
    assert len(free) == 8
    assert generate(eos_token_id=free[2]) == free[: free.index(free[2]) + 1]
