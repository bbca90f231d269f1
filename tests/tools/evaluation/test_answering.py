"""What harnesses are answered: the model's own words, reduced to options; log probabilities by the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.tiny_export import CHATML, write_export
from tools.evaluation.answering import NO_OPTION, ask, open_answerer, reduced

QUESTION = "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter."


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("answering") / "export", added=CHATML, max_position_embeddings=512)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        drawn = np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


def test_answers_are_the_models_alone_and_together_and_in_turns(export, pictures):
    answerer = open_answerer(str(export), device="cpu", exact=False)
    opened = [[Image.open(path)] for path in pictures]
    together = answerer.answer(["What?", "Which animal is it?"], opened, 6)
    assert together == [
        answerer.answer([text], [own], 6)[0] for text, own in zip(["What?", "Which animal is it?"], opened, strict=True)
    ]
    prompt = answerer.processor(text="What?", images=opened[0][0], return_tensors="pt")
    only = answerer.model.text_only()
    said = answerer.model.generate(**prompt, max_new_tokens=6, do_sample=False, logits_processor=only)
    assert together[0] == answerer.processor.texts(said, prompt)[0]
    in_turns = open_answerer(str(export), device="cpu", exact=False, chat=True).answer(["What?"], opened[:1], 6)
    assert in_turns != together[:1]


def test_a_message_is_its_pictures_and_all_its_text(export, pictures):
    answerer = open_answerer(str(export), device="cpu", exact=False)
    message = [
        {"type": "image", "value": str(pictures[0])},
        {"type": "text", "value": "What"},
        {"type": "text", "value": "is it?"},
    ]
    assert ask(answerer, message, 5) == answerer.answer(["What\nis it?"], [[Image.open(pictures[0])]], 5)[0]
    with pytest.raises(ValueError, match="video"):
        ask(answerer, [{"type": "video", "value": "x"}], 5)


def test_a_log_likelihood_is_that_of_the_text_among_texts(export, pictures):
    answerer = open_answerer(str(export), device="cpu")
    picture, processor, model = Image.open(pictures[0]), answerer.processor, answerer.model
    found, likeliest = answerer.log_likelihood("It is", [picture], " red")
    start = processor.ids_of([picture, "It is"])
    total, ids = 0.0, list(start)
    for token in processor.encode(" red"):
        logits = model(torch.tensor([ids])).logits[0, -1].double().detach()
        total += float(logits[: model.config.image_token_offset].log_softmax(-1)[token])
        ids.append(token)
    assert found == pytest.approx(total, abs=1e-4) and likeliest is False


@pytest.mark.parametrize(
    ("question", "said", "expected"),
    [
        (QUESTION, "B. a dog", "B"),
        (QUESTION, "A cow", NO_OPTION),
        (QUESTION, "a dog", "B"),
        (QUESTION, "a", NO_OPTION),
        ("Is it a dog? Please answer yes or no.", "Yes, it is", "yes"),
        ("Is it? Answer Yes or No.", "a", NO_OPTION),
        ("What is it?", "a dog", "a dog"),
    ],
)
def test_answers_are_reduced_where_a_question_has_options(question, said, expected):
    assert reduced(question, said) == expected


def test_text_logits_are_those_of_the_text_rows_alone(export):
    from model.hf.modeling_uni_x import UniXForCausalLM

    ids = torch.arange(12)[None]
    both, text = (UniXForCausalLM.from_pretrained(export, text_logits_only=only)(ids).logits for only in (False, True))
    offset = UniXForCausalLM.from_pretrained(export).config.image_token_offset
    assert torch.equal(both[..., :offset], text[..., :offset]) and both.isfinite().all()
    assert text[..., offset:].isneginf().all()
