"""Documents of text and pictures: their form, that they follow the model, and that each is its own seed's."""

from __future__ import annotations

import pytest
import torch

from model.hf.sampling_uni_x import SeededSamplingLogitsProcessor
from tests.model.tiny_hf import CODES, END, EOS, START, TEXT_IDS, document, tiny_model

UNCONDITIONAL = torch.tensor([7, 7, START])
NUM_CODES = 4


def with_markers_likely(model, boost: float):
    """The model, its LM head changed so that it opens pictures and ends texts more often than by chance."""
    with torch.no_grad():
        direction = model.model.norm.weight / model.model.norm.weight.norm()
        for token in (START, EOS):
            model.lm_head.weight[token] += boost * direction
    return model


def sampled(model, prompts, **options) -> list[list[int]]:
    """Documents, each with the seed that its first id names."""
    return model.generate_documents(
        prompts,
        UNCONDITIONAL,
        num_codes=NUM_CODES,
        max_new_tokens=12,
        max_images=2,
        guidance_scale=2.0,
        text_temperature=1.0,
        generators=[torch.Generator().manual_seed(prompt[0]) for prompt in prompts],
        **options,
    )


def model_and_prompts():
    model = with_markers_likely(tiny_model(seed=31, tie_word_embeddings=False), 1.6)
    prompts = [[row, *document([1 + row % 4], row)] for row in range(15)]
    return model, [*prompts, [15, *document([2, 3, 2]), START]]


def check_form(new: list[int], opened: bool) -> int:
    """Every picture has its codes and its end, and nothing else has codes -> how many pictures there are."""
    pictures, place = 0, 0
    if opened:
        new = [START, *new]
    while place < len(new):
        if new[place] == START:
            codes = new[place + 1 : place + 1 + NUM_CODES]
            assert len(codes) == NUM_CODES and all(TEXT_IDS <= code < TEXT_IDS + CODES for code in codes)
            assert new[place + 1 + NUM_CODES] == END
            pictures, place = pictures + 1, place + 2 + NUM_CODES
        else:
            assert new[place] < TEXT_IDS and new[place] != END
            assert new[place] != EOS or place == len(new) - 1
            place += 1
    return pictures


def test_documents_have_whole_pictures_and_keep_their_limits():
    model, prompts = model_and_prompts()
    found = sampled(model, prompts)
    counts = [check_form(new, prompt[-1] == START) for new, prompt in zip(found, prompts, strict=True)]
    assert max(counts) == 2 and min(counts) == 0 and counts[-1] >= 1
    words = [sum(token < TEXT_IDS and token != END for token in new) for new in found]
    assert max(words) == 12 and {new[-1] for new in found} >= {EOS}
    assert not any(check_form(new, False) for new in model.generate_documents(prompts[:3], num_codes=2, max_images=0))


def test_a_document_is_that_of_its_seed_whatever_the_batch():
    model, prompts = model_and_prompts()
    together = sampled(model, prompts)
    assert [sampled(model, [prompt])[0] for prompt in prompts] == together
    assert sampled(model, prompts[3:8]) == together[3:8]
    again = [[1 + prompt[0], *prompt[1:]] for prompt in prompts]
    assert sampled(model, again) != together


def test_greedy_documents_follow_whole_passes():
    model, prompts = model_and_prompts()
    options = {"num_codes": NUM_CODES, "max_new_tokens": 8, "max_images": 1, "guidance_scale": 3.0, "temperature": 0}
    found = model.generate_documents(prompts, UNCONDITIONAL, **options)
    for prompt, new in zip(prompts, found, strict=True):
        row, unconditional = list(prompt), None
        for token in new:
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, -1]
                if unconditional:
                    u = model(torch.tensor([unconditional])).logits[0, -1]
                    logits = u + 3.0 * (logits - u)
            if row[-1] == START:
                unconditional = UNCONDITIONAL.tolist()
                with torch.no_grad():
                    u = model(torch.tensor([unconditional])).logits[0, -1]
                logits = u + 3.0 * (logits - u)
            if unconditional and len(unconditional) < len(UNCONDITIONAL) + NUM_CODES:
                expected = TEXT_IDS + int(logits[TEXT_IDS:].argmax())
                unconditional.append(expected)
            elif unconditional and len(unconditional) == len(UNCONDITIONAL) + NUM_CODES:
                expected, unconditional = END, None
            else:
                logits[TEXT_IDS:] = -torch.inf
                logits[END] = -torch.inf
                if END in row[len(prompt) :]:
                    logits[START] = -torch.inf  # one picture is all
                expected = int(logits.argmax())
            assert token == expected
            row.append(token)


def test_a_stop_ends_a_document():
    model, prompts = model_and_prompts()
    (free,) = model.generate_documents(prompts[:1], num_codes=NUM_CODES, max_new_tokens=6, max_images=0)
    options = {"num_codes": NUM_CODES, "max_new_tokens": 6, "max_images": 0, "stop_ids": [free[2]]}
    assert model.generate_documents(prompts[:1], **options) == [free[: free.index(free[2]) + 1]]


def test_text_is_drawn_by_its_probabilities():
    model = tiny_model(seed=32)
    ids, draws = torch.tensor([document([4])]), 3000
    probabilities = model(ids).logits[0, -1].div(0.8).softmax(-1)
    processor = SeededSamplingLogitsProcessor(
        [torch.Generator().manual_seed(seed) for seed in range(draws)], [EOS], temperature=0.8
    )
    with torch.no_grad():
        scores = model(ids).logits[:, -1].expand(draws, -1)
    drawn = processor(ids.expand(draws, -1), scores).argmax(-1)
    frequency = torch.bincount(drawn, minlength=len(probabilities)) / draws
    assert ((frequency - probabilities).abs() <= 5 * (probabilities / draws).sqrt() + 1e-3).all()


def test_a_row_that_has_ended_draws_no_more():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    processor = SeededSamplingLogitsProcessor(generators, [EOS])
    scores = torch.zeros(2, 10)
    processor(torch.tensor([[EOS], [3]]), scores)  # what the prompt ends with does not count
    after_one = [generator.get_state() for generator in generators]
    processor(torch.tensor([[EOS, 4], [3, EOS]]), scores)
    processor(torch.tensor([[EOS, 4, 4], [3, EOS, 4]]), scores)
    assert torch.equal(generators[1].get_state(), after_one[1])
    assert not torch.equal(generators[0].get_state(), after_one[0])


def test_requests_that_do_not_fit_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="1 generators for 2 prompts"):
        model.generate_documents([[1], [2]], num_codes=2, generators=[torch.Generator()])
    with pytest.raises(ValueError, match="no prompt empty"):
        model.generate_documents([[]], num_codes=2)
    with pytest.raises(ValueError, match="temperature >= 0"):
        model.generate_documents([[1]], num_codes=2, text_temperature=-1.0)
