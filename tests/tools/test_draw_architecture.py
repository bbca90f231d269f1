"""docs/architecture.md and its picture are what the code says."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pretrain.system.errors import UserError
from tools import draw_architecture as drawing


def test_page_and_picture_are_up_to_date():
    remedy = "run python tools/draw_architecture.py"
    assert drawing.PAGE.read_text(encoding="utf-8") == drawing.page(drawing.PAGE.read_text(encoding="utf-8")), remedy
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.picture(), remedy


def test_the_picture_is_an_image_with_every_file_and_what_it_does():
    root = ElementTree.fromstring(drawing.picture())
    words = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert {file for stage in drawing.STAGES for file in stage.files} <= set(words)
    assert all(stage.gives in words for stage in drawing.STAGES[:-1])


def test_a_file_that_is_gone_and_a_page_without_its_place_are_refused():
    with pytest.raises(UserError, match="mend STAGES"):
        drawing.what_it_does("model/gone.py")
    with pytest.raises(UserError, match="put them where the table is to stand"):
        drawing.page("# A page\n")
