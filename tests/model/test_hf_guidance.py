"""Guidance with two scales, batches that change nothing, and steps that compute one branch only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.hf.cache_uni_x import reserved_cache
from model.hf.guidance_uni_x import combine, linear, scales_of, weights_of
from tests.model.tiny_hf import QWEN3, START, TEXT_IDS, document, left_pad, text, tiny_model

UNCONDITIONAL = torch.tensor([7, 7, START])
NUM_CODES = 6


def edit_prompts(lengths: list[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(codes of the source, words of the instruction) of each edit -> its prompt, and the prompt without words."""
    sources = [document([0, codes], seed) for seed, (codes, _) in enumerate(lengths)]
    words = [text(count, torch.Generator().manual_seed(90 + count)) for _, count in lengths]
    whole = [[*source, *said, START] for source, said in zip(sources, words, strict=True)]
    return whole, [[*source, START] for source in sources]


def pictures_by_definition(model, prompts, text_scales, image_scales) -> list[list[int]]:
    """Greedy codes from the formula as it is published, whole passes of one prompt at a time, no cache."""
    found = []
    for prompt, source in zip(*prompts, strict=True):
        rows, codes = [UNCONDITIONAL.tolist(), source, prompt], []
        for text_scale, image_scale in zip(text_scales, image_scales, strict=True):
            with torch.no_grad():
                u, i, c = (model(torch.tensor([row])).logits[0, -1, TEXT_IDS:] for row in rows)
            codes.append(int((u + image_scale * (i - u) + text_scale * (c - i)).argmax()))
            rows = [[*row, TEXT_IDS + codes[-1]] for row in rows]
        found.append(codes)
    return found


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "parts"),
    [(4.0, 1.5, 3), (3.0, 1.0, 2), (2.5, 2.5, 2), (1.0, 2.0, 3), (linear(1.0, 5.0), linear(3.0, 1.0), 3)],
    ids=["two scales", "source not guided", "one scale", "text not guided", "schedules"],
)
def test_edits_follow_the_published_formula(text_scale, image_scale, parts):
    model, sizes = tiny_model(seed=21), set()
    model.model.register_forward_pre_hook(lambda m, a, k: sizes.add(len(k["input_ids"])), with_kwargs=True)
    prompts = edit_prompts([(6, 3), (4, 5)])
    (ids, mask), (image_ids, image_mask) = (left_pad(rows) for rows in prompts)
    codes = model.generate_images(
        ids,
        mask,
        UNCONDITIONAL,
        num_codes=NUM_CODES,
        guidance_scale=text_scale,
        image_guidance_scale=image_scale,
        image_only_ids=image_ids,
        image_only_mask=image_mask,
        temperature=0,
    )
    assert sizes == {2 * parts}  # prompts whose weight is always zero are not computed
    scales = [scales_of(scale, NUM_CODES) for scale in (text_scale, image_scale)]
    assert codes.tolist() == pictures_by_definition(model, prompts, *scales)


def hidden_states(model, *args, **kwargs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Codes that are drawn, and what the decoder gave in each step."""
    states = []
    hook = model.model.register_forward_hook(lambda m, a, output: states.append(output.last_hidden_state))
    codes = model.generate_images(*args, num_codes=NUM_CODES, top_k=20, generator=chance(len(args[0])), **kwargs)
    hook.remove()
    return codes, states


def chance(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(50 + row) for row in range(count)]


def test_scale_one_is_no_guidance_bit_for_bit():
    model = tiny_model(seed=22, **QWEN3)
    (ids, mask), (image_ids, image_mask) = (left_pad(rows) for rows in edit_prompts([(6, 3), (4, 5)]))
    codes, states = hidden_states(model, ids, mask, guidance_scale=1.0)
    for options in (
        {"guidance_scale": 1.0},
        {"guidance_scale": linear(1.0, 1.0)},
        {"guidance_scale": [1.0] * NUM_CODES, "image_guidance_scale": 1.0, "image_only_ids": image_ids},
    ):
        again, same = hidden_states(model, ids, mask, UNCONDITIONAL, **options)
        assert torch.equal(again, codes)
        assert len(same) == len(states) and all(torch.equal(*pair) for pair in zip(same, states, strict=True))
    guided, _ = hidden_states(
        model, ids, mask, UNCONDITIONAL, guidance_scale=5.0, image_only_ids=image_ids, image_only_mask=image_mask
    )
    assert not torch.equal(guided, codes)


@given(
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6),
)
def test_weights_are_those_of_the_formula(text_scale, image_scale, logits):
    c, i, u = torch.tensor(logits, dtype=torch.float64).view(3, 2)
    (weights,) = weights_of([text_scale], [image_scale])
    expected = u + image_scale * (i - u) + text_scale * (c - i)
    torch.testing.assert_close(combine([c, i, u], weights), expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(combine([c, i, u], weights_of([1.0], [1.0])[0]), c)
    assert torch.equal(combine([c, i, u], weights_of([0.0], [0.0])[0]), u)


def test_schedules_have_one_number_a_code():
    assert scales_of(linear(1.0, 4.0), 4) == [1.0, 2.0, 3.0, 4.0]
    assert scales_of(linear(2.0, 8.0), 1) == [2.0]
    with pytest.raises(ValueError, match="3 guidance scales for 4 codes"):
        scales_of([1.0, 2.0, 3.0], 4)
    for number in (1e30, -1e30, float("nan")):
        with pytest.raises(ValueError, match="guidance scales are .* to .*: give numbers up to 1,000,000"):
            scales_of(number, 4)


@pytest.mark.parametrize("flavour", [{}, QWEN3], ids=["qwen25", "qwen3"])
def test_batches_of_1_5_and_16_draw_the_same(flavour):
    model = tiny_model(seed=23, **flavour)
    lengths = [(2 + row % 5, 1 + row * 3 % 7) for row in range(16)]
    prompts, sources = edit_prompts(lengths)

    def draw(batch: int) -> list[list[int]]:
        found = []
        for start in range(0, 16, batch):
            (ids, mask), (image_ids, image_mask) = (left_pad(x[start : start + batch]) for x in (prompts, sources))
            codes = model.generate_images(
                ids,
                mask,
                UNCONDITIONAL,
                num_codes=NUM_CODES,
                guidance_scale=3.0,
                image_guidance_scale=1.5,
                image_only_ids=image_ids,
                image_only_mask=image_mask,
                top_p=0.98,
                generator=chance(16)[start : start + batch],
            )
            found += codes.tolist()
        return found

    expected = draw(1)
    assert len({tuple(codes) for codes in expected}) == 16
    assert draw(5) == expected and draw(16) == expected


def test_a_step_of_a_picture_computes_the_vision_branch_only():
    model = tiny_model(seed=24)
    drawn = []

    def forbid_text_branches(codes: torch.Tensor) -> None:
        drawn.append(codes.shape[1])
        if len(drawn) == 1:  # the prompt is read
            for index in model.model.vision_layers:
                model.model.layers[int(index)].forward = None  # a call would raise

    prompts = [[*document([3, 4, 2]), START], [*document([7]), START]]
    ids, mask = left_pad(prompts)
    codes = model.generate_images(
        ids, mask, UNCONDITIONAL, num_codes=4, guidance_scale=2.0, on_codes=forbid_text_branches
    )
    assert drawn == [1, 2, 3, 4] and codes.shape == (2, 4)
    with pytest.raises(TypeError):
        model(ids, attention_mask=mask)


def test_a_step_of_text_computes_the_text_branch_only():
    model = tiny_model(seed=24)
    ids = torch.tensor([document([3, 4, 2])])
    cache = model(ids, use_cache=True).past_key_values
    for branch in model.model.vision_layers.values():
        branch.forward = None
    model(torch.tensor([[5]]), past_key_values=cache)


def test_partial_pictures_are_handed_out_as_they_grow():
    model, seen = tiny_model(seed=25), []
    ids = torch.tensor([[*document([4]), START]] * 2)
    codes = model.generate_images(
        ids, num_codes=5, guidance_scale=1.0, generator=chance(2), on_codes=lambda part: seen.append(part.clone())
    )
    assert [part.shape[1] for part in seen] == [1, 2, 3, 4, 5]
    assert all(torch.equal(part, codes[:, : part.shape[1]]) for part in seen)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 1000))
@torch.no_grad()
def test_logits_of_every_step_are_those_of_one_pass(lengths, seed):
    model = tiny_model(seed=26)
    prompts = [[*document(lengths, seed), START], [*document([2]), START]]
    ids, mask = left_pad(prompts)
    states = []
    hook = model.model.register_forward_hook(lambda m, a, output: states.append(output.last_hidden_state[:, -1]))
    codes = model.generate_images(ids, mask, num_codes=5, guidance_scale=1.0, generator=chance(2))
    hook.remove()
    cached = model.lm_head(torch.stack(states, dim=1))
    for row, prompt in enumerate(prompts):
        whole = torch.tensor([[*prompt, *(codes[row, :-1] + TEXT_IDS).tolist()]])
        logits = model(whole, use_cache=False).logits[0, -5:]
        assert (cached[row] - logits).abs().max() <= 1e-4


def test_requests_that_do_not_fit_are_refused():
    model = tiny_model()
    ids = torch.tensor([[1, START]])
    for options, message in (
        ({"guidance_scale": 3.0, "image_guidance_scale": 2.0, "unconditional_ids": UNCONDITIONAL}, "image_only_ids"),
        ({"guidance_scale": [1.0]}, "1 guidance scales for 2 codes"),
        ({"guidance_scale": float("nan"), "unconditional_ids": UNCONDITIONAL}, "guidance scales are nan to nan"),
        ({"guidance_scale": 1.0, "temperature": float("nan")}, "temperature nan"),
        ({"guidance_scale": 1.0, "temperature": float("inf")}, "temperature inf"),
        (
            {"guidance_scale": 2.0, "image_guidance_scale": 1.0, "image_only_ids": torch.tensor([[1, 2]])},
            "end with id 80",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_images(ids, num_codes=2, **options)
    with pytest.raises(ValueError, match="room for 3 tokens, not for 4"):
        model(torch.tensor([[1, 2, 3, 4]]), past_key_values=reserved_cache(4, 3))
