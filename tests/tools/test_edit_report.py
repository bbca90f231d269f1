"""The figures of the editing report, on edits whose answers are known, and its page."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tools.reports import edit_figures, edit_page
from tools.reports.edit import others
from tools.reports.edit_figures import CEILING, COPY, INSIDE, MEAN, NO_SOURCE, OTHER, OUTSIDE, RESULT, SOURCE, EditRow

WHITE = Image.new("RGB", (8, 8), "white")


def picture(left: int, right: int) -> Image.Image:
    """Grey values of the left and of the right half."""
    values = numpy.full((8, 8, 3), left, dtype=numpy.uint8)
    values[:, 4:] = right
    return Image.fromarray(values)


def row(number: int, kind: str = "skin", drawing: str = "1F44D") -> EditRow:
    """An edit that turns the left half from white to black."""
    return EditRow(f"{kind}:{drawing}:{number}", kind, f"edit <{number}>", picture(255, 255), picture(0, 255))


def candidates(rows: list[EditRow], result: Image.Image) -> dict[str, list[Image.Image]]:
    made = {
        RESULT: result,
        COPY: picture(250, 250),
        SOURCE: picture(255, 255),
        NO_SOURCE: picture(100, 100),
        OTHER: picture(50, 50),
        MEAN: picture(128, 128),
        CEILING: picture(5, 250),
    }
    return {name: [found] * len(rows) for name, found in made.items()}


def test_distances_are_those_of_the_region_and_of_the_rest():
    sources, targets = (edit_figures.pixels([made]) for made in (picture(255, 255), picture(0, 255)))
    mask = edit_figures.changed(sources, targets)
    assert mask[0, :, :4].all() and not mask[0, :, 4:].any()
    found = edit_figures.distances(edit_figures.pixels([picture(10, 235)]), targets, mask)
    assert found[INSIDE].tolist() == [10.0] and found[OUTSIDE].tolist() == [20.0]


def test_smoothing_of_an_edge_is_no_change():
    sources = edit_figures.pixels([picture(255, 100)])
    assert not edit_figures.changed(sources, edit_figures.pixels([picture(255 - edit_figures.SEEN, 100)])).any()


def test_intervals_are_over_things_and_not_over_edits():
    """A hundred edits of two things say no more than the two."""
    values = numpy.repeat([0.0, 10.0], 50)
    mean, low, high = edit_figures.interval(values, ["a"] * 50 + ["b"] * 50, seed=0)
    assert (mean, low, high) == (5.0, 0.0, 10.0)
    mean, low, high = edit_figures.interval(values, list(range(100)), seed=0)
    assert mean == 5.0 and 3.5 < low < 5 < high < 6.5
    assert edit_figures.interval(numpy.ones(3), ["a"] * 3, seed=0) == [1.0, 1.0, 1.0]


def test_figures_of_a_good_and_of_a_bad_result():
    rows = [
        row(number, kind, drawing)
        for number, (kind, drawing) in enumerate([("skin", "1F44D"), ("skin", "1F44E"), ("line art", "1F34E")])
    ]
    good = edit_figures.measure(rows, candidates(rows, picture(10, 250)), seed=0)
    assert list(good) == ["all", "skin", "line art"]
    assert (good["all"]["edits"], good["skin"]["things"], good["line art"]["edits"]) == (3, 2, 1)
    assert good["all"]["changed_pixels"] == 0.5
    assert good["all"]["distance"][RESULT] == {INSIDE: [10.0] * 3, OUTSIDE: [5.0] * 3}
    assert good["all"]["distance"][SOURCE] == {INSIDE: [255.0] * 3, OUTSIDE: [0.0] * 3}
    assert good["all"]["result_minus"]["copied codes, inside"] == [-240.0] * 3
    assert good["all"]["nearer_than_the_copy"] == 1.0
    assert all("nearer" in line for line in edit_figures.verdicts(good))
    bad = edit_figures.measure(rows, candidates(rows, picture(250, 250)), seed=0)
    lines = edit_figures.verdicts(bad)
    assert "no clear difference; nearer in 0 of 2 kinds" in lines[0]
    assert "farther" in next(line for line in lines if "instruction only" in line)
    assert bad["all"]["nearer_than_the_copy"] == 0.0
    table = edit_figures.distance_table(bad, INSIDE)
    assert table[0][:3] == ["", "edits", RESULT] and table[1][:3] == ["all", "3", "250.0 (250.0-250.0)"]


def test_another_target_is_of_the_same_kind_and_of_another_thing():
    rows = [
        row(1, "skin", "1F44D"),
        row(2, "skin", "1F44D-1F3FB"),
        row(3, "skin", "1F44E"),
        row(4, "hair"),
        row(5, "hair", "1F468"),
    ]
    assert rows[0].thing == rows[1].thing != rows[2].thing  # a skin tone is no other thing
    for seed in range(20):
        chosen = others(rows, seed)
        assert chosen[:2] == [2, 2] and chosen[2] in (0, 1) and chosen[3:] == [4, 3]
    assert others([row(1)], 0) == [0]


def test_the_page_shows_what_it_is_given(tmp_path):
    rows = [row(1), row(2, "line art", "1F34E")]
    made = candidates(rows, picture(10, 250))
    figures = {
        "side": "heldout",
        "guidance": 1.5,
        "image_guidance": 1.0,
        "temperature": 0.1,
        "seed": 0,
        "codes_that_an_edit_changes": 0.25,
        "losses": {},
        "kinds": edit_figures.measure(rows, made, seed=0),
    }
    metrics = [{"step": 0, "heldout/loss_image": 8.0}, {"step": 9, "heldout/loss_image": 4.0}]
    edit_page.write(tmp_path / "report", figures, metrics, rows, made)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "edit &lt;1&gt;" in page and "<1>" not in page and "Line art" in page
    assert "10.0 (10.0-10.0)" in page and "2 edits of 2 kinds" in page and "25% of the codes" in page
    assert page.count("data:image/png;base64,") == 1 + 2 * 5
    assert json.loads((tmp_path / "report" / "figures.json").read_text())["kinds"]["all"]["edits"] == 2
    with Image.open(tmp_path / "report" / "edits.png") as sheet:
        assert sheet.width > 2 * 256  # two strips of four pictures


def test_a_folder_without_edits_is_refused(tmp_path):
    with pytest.raises(UserError, match="demo_edits.py"):
        edit_figures.read_edits(tmp_path, 8, 1)
    for content in (b"", bytes(99)):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(UserError, match="a.parquet"):
            edit_figures.read_edits(tmp_path, 8, 1)


def test_the_preset_needs_the_model_of_the_demo(commands: CommandServer, tmp_path):
    done = commands.run("tools/demo.py", "--preset", "demo-edit", "--folder", tmp_path / "work")
    assert_refused(done, str(tmp_path), "run make demo first")
    assert not (tmp_path / "work").exists()
