"""Prompts in ids, and the file that carries their wordings in an export."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.prompts import (
    DEFAULT_TEMPLATES,
    PromptTemplates,
    image_to_text_ids,
    picture_ids,
    text_to_image_ids,
    unconditional_ids,
)
from model.vocabulary import Vocabulary
from pretrain.system.errors import UserError

VOCABULARY = Vocabulary(
    image_token_offset=0x110000, codebook_size=16, vision_start_id=0x110000 - 3, vision_end_id=0x110000 - 2, eos_id=0
)
SMALL = PromptTemplates(text_to_image=("<{caption}>", "{caption}!"), image_to_text=("say:", "words:"))


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


@given(st.text())
def test_a_caption_gives_the_same_prompt_as_text_and_as_ids(caption):
    for wording in range(len(DEFAULT_TEMPLATES.text_to_image)):
        arguments = (encode, VOCABULARY, DEFAULT_TEMPLATES, wording)
        assert text_to_image_ids(caption, *arguments) == text_to_image_ids(encode(caption), *arguments)


def test_prompts_have_the_published_order():
    start, end, offset = VOCABULARY.vision_start_id, VOCABULARY.vision_end_id, VOCABULARY.image_token_offset
    assert text_to_image_ids("{cat}", encode, VOCABULARY, SMALL) == [*encode("<{cat}>"), start]
    assert text_to_image_ids("cat", encode, VOCABULARY, SMALL, wording=1) == [*encode("cat!"), start]
    assert picture_ids([3, 0], VOCABULARY) == [start, offset + 3, offset, end]
    assert image_to_text_ids([3, 0], encode, VOCABULARY, SMALL) == [start, offset + 3, offset, end, *encode("say:")]
    assert image_to_text_ids([3], encode, VOCABULARY, SMALL, "why?")[3:] == encode("why?")
    assert unconditional_ids(encode, VOCABULARY, SMALL) == [*encode("<unconditional>"), start]


def test_templates_survive_json():
    templates = PromptTemplates(("画：{caption}",), ("说：",), "<none>", (4, 2), "abc")
    assert PromptTemplates.from_json(templates.to_json()) == templates
    assert PromptTemplates.from_json(DEFAULT_TEMPLATES.to_json()) == DEFAULT_TEMPLATES
    assert "画" in templates.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_to_image": ["no place for it"]}, "must hold {caption} exactly once"),
        ({"text_to_image": ["{caption} {caption}"]}, "must hold {caption} exactly once"),
        ({"text_to_image": []}, "give at least one wording"),
        ({"image_to_text": "one"}, "give a list of strings"),
        ({"image_to_text": [1]}, "give a list of strings"),
        ({"unconditional": 5}, "unconditional is 5: give a string"),
        ({"grid": [8]}, r"give \[rows, columns\]"),
        ({"grid": [8, 0]}, r"give \[rows, columns\]"),
        ({"wordings": []}, r"unknown keys \['wordings'\]"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_by_name(changes, message):
    values = {**json.loads(SMALL.to_json()), **changes}
    with pytest.raises(UserError, match=f"^prompts.json: .*{message}"):
        PromptTemplates.from_json(json.dumps(values), source="prompts.json")


def test_files_that_are_no_templates_are_refused():
    with pytest.raises(UserError, match="not JSON"):
        PromptTemplates.from_json("{")
    with pytest.raises(UserError, match="holds a list"):
        PromptTemplates.from_json("[]")
    with pytest.raises(UserError, match=r"missing keys \['grid', 'image_to_text', 'text_to_image', 'unconditional'\]"):
        PromptTemplates.from_json("{}")
