"""Wordings as data: what ships, what a user's own file may hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import pretrain.prompt_templates
from model.prompts import DEFAULT_TEMPLATES
from pretrain.prompt_templates import read_prompt_templates
from pretrain.system.errors import UserError

SHIPPED = sorted(Path(pretrain.prompt_templates.__file__).parent.glob("*.yaml"))


def test_none_are_those_of_pretraining():
    assert read_prompt_templates("") is DEFAULT_TEMPLATES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_have_several_languages_and_begin_with_the_wordings_of_pretraining(path):
    found, values = read_prompt_templates(path.stem), yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found == read_prompt_templates(str(path))
    for direction in ("text_to_image", "image_to_text"):
        texts, default = getattr(found, direction), getattr(DEFAULT_TEMPLATES, direction)
        assert {"en", "de", "zh"} <= values[direction].keys() and texts[: len(default)] == default
        assert len(set(texts)) == len(texts) and len({len(texts) for texts in values[direction].values()}) == 1
    assert any("画" in text for text in found.text_to_image) and any("Bild" in text for text in found.image_to_text)


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "text_to_image: {fr: ['Dessine : {caption}']}\nimage_to_text: {fr: ['On voit :']}\n"
    )
    found = read_prompt_templates(str(tmp_path / "mine.yaml"))
    assert (found.text_to_image, found.image_to_text) == (("Dessine : {caption}",), ("On voit :",))


@pytest.mark.parametrize(
    "text, words",
    [
        ("text_to_image: {en: ['{caption}']}", "holds ['text_to_image']: give text_to_image and image_to_text"),
        ("text_to_image: {en: ['{caption}']}\nimage_to_text: ['a']", "image_to_text is not lists by language"),
        ("text_to_image: {en: [draw]}\nimage_to_text: {en: [a]}", "'draw' must hold {caption} exactly once"),
        ("text_to_image: {en: []}\nimage_to_text: {en: [a]}", "text_to_image is empty"),
        ("text_to_image: {en: ['{caption}']}\nimage_to_text: {en: [1]}", "give a list of strings"),
        ("- a", "holds list"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_no_wordings_is_refused_in_a_line_that_names_the_file(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompt_templates(str(path))
    message = str(caught.value)
    assert words in message and f"data.prompt_templates {path}" in message and "\n" not in message


def test_a_name_that_nothing_has_tells_which_ship():
    with pytest.raises(
        UserError, match="data.prompt_templates klingon: cannot be read .*: give a YAML file, or en-de-zh"
    ):
        read_prompt_templates("klingon")
