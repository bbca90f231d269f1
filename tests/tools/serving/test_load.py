"""The clients of the load test: they find answers that are wrong, and none where all are right."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

from tests.tools.serving_process import serving
from tests.tools.tiny_export import write_export
from tools.export.folder import open_export
from tools.serving.load import Load, make_pool
from tools.serving.throughput import most_apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("load") / "tiny")


def test_right_and_wrong_answers_are_told_apart(commands, folder, tmp_path):
    pool = make_pool(open_export(folder), 1)
    with serving(commands, folder, tmp_path, "--chat-format", "plain") as server:
        load = Load(server.url, pool, 3)
        while not load.wrong and not any(load.measured.values()):  # a machine may be too busy for one answer a second
            load.run(1.0)
        assert load.wrong == []
        load.pool = [replace(task, expected="another's") for task in pool]
        for number in range(3):
            load.once(number)
        assert len(load.wrong) == 3 and "draw 'red heart 0', seed 0: not what the model makes" in load.wrong[0]
        load.pool = [replace(task, prompt="") for task in pool[:1]]
        load.once(0)
        assert "prompt" in load.wrong[3] and load.in_hand() == 0


def test_pictures_of_two_servers_are_compared_by_levels():
    plain, near, far = (png(Image.new("RGB", (4, 4), (level, 7, 7))) for level in (9, 10, 12))
    assert [most_apart([plain, other]) for other in (plain, near, far)] == [0, 1, 3]
    assert most_apart([plain, png(Image.new("RGB", (4, 5)))]) == 255


def png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
