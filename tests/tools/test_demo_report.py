"""The figures of the report, on galleries whose answers are known."""

from __future__ import annotations

import json
import shutil

import numpy
import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import save_tiny_vq
from tests.tools.tiny_export import write_export
from tools.reports import report_page
from tools.reports.demo import (
    Gallery,
    losses,
    measure_captions,
    measure_recall,
    nearest,
    pixels,
    read_metrics,
    reconstruction,
)

GALLERY = Gallery(
    names=[["sun"], ["moon", "crescent"], ["star"], ["cat"]],
    codes=None,
    ids=[["a"], ["b"], ["c"], ["d"]],
    texts=[["sun", "Sonne"], ["moon", "Mond", "crescent", "Mond"], ["star", "Stern"], ["cat", "Katze"]],
)


def test_nearest_orders_by_distance():
    real = numpy.array([[0.0, 0.0], [1.0, 0.0], [0.4, 0.1]], dtype=numpy.float32)
    drawn = numpy.array([[0.9, 0.1], [0.1, 0.0]], dtype=numpy.float32)
    assert nearest(drawn, real).tolist() == [[1, 2, 0], [0, 2, 1]]


def test_recall_counts_hits_and_chance():
    names = ["sun", "crescent", "star", "cat"]
    order = [[0, 1, 2, 3], [3, 1, 2, 0], [2, 0, 1, 3], [0, 1, 2, 3]]
    figures = measure_recall(GALLERY, names, order)
    assert (figures["nearest_has_the_name"], figures["one_of_five_nearest_has_the_name"]) == (2, 4)
    assert figures["median_place_of_the_right_picture"] == 1.5
    assert figures["chance"] == 0.25 and figures["times_chance"] == pytest.approx(2.0)


def test_a_name_on_two_pictures_has_twice_the_chance():
    gallery = Gallery(
        names=[["flag"], ["flag"], ["sun"], ["cat"]], codes=None, ids=[["a"], ["b"], ["c"], ["d"]], texts=[]
    )
    assert measure_recall(gallery, ["flag"], [[1, 0, 2, 3]])["chance"] == 0.5


def test_captions_count_in_any_language_beside_one_caption_for_all():
    found = measure_captions(GALLERY, [1, 3, 0], ["Mond", "cat", "moon"])
    assert (found["right"], found["pictures"], found["different"]) == (2, 3, 3)
    assert found["best_of_one_for_all"] == 0.25  # a name that is twice on one picture counts once
    same = measure_captions(GALLERY, [0, 1], ["sun", "sun"])
    assert (same["right"], same["different"], same["rate"]) == (1, 1, 0.5)


def test_losses_are_the_first_and_the_last(tmp_path):
    lines = [
        {"step": 0, "heldout/loss_image": 8.0},
        {"step": 5, "train/loss_text": 3.0},
        {"step": 9, "heldout/loss_image": 4.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = losses(tmp_path)
    assert found["heldout/loss_image"] == {"first_step": 0, "first": 8.0, "last": 4.0, "last_step": 9}
    assert found["train/loss_text"]["last"] == 3.0 and "heldout/loss_text" not in found
    with pytest.raises(UserError, match="run folder"):
        losses(tmp_path / "elsewhere")


@pytest.mark.parametrize("line", [b'{"step": 9, "heldout/loss_image": null}', b"\xff\0", b"[3]", b'{"step": "9"}'])
def test_damaged_lines_of_a_run_are_left_out_and_counted(tmp_path, line):
    there = b'{"step": 0, "heldout/loss_image": 8.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(there + line + b"\n" + there + b'{"step": 1, "hel')
    told: list[str] = []
    assert len(read_metrics(tmp_path, told.append)) == 2 and losses(tmp_path)["heldout/loss_image"]["last"] == 8.0
    assert told == [f"1 line of {tmp_path / 'metrics.jsonl'} cannot be read, and is left out"]
    (tmp_path / "metrics.jsonl").write_bytes(there)
    assert len(read_metrics(tmp_path, told.append)) == len(told) == 1
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match="holds no line"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("change, message", [("no pictures", "images"), ("other vq", "image tokenizer")])
def test_what_a_report_needs_is_looked_at_before_it_is_drawn(commands, tiny_data, tmp_path, change, message):
    model, data = write_export(tmp_path / "model"), tmp_path / "data"
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    (data / "corpus/heldout/folder/images").mkdir(parents=True)
    for side, folder in (("train", tiny_data.train), ("heldout", tiny_data.heldout)):
        shutil.copytree(folder, data / "shards" / side)
    if change == "no pictures":
        (data / "corpus/heldout/folder/images").rmdir()
    words = ["--model", model, "--run", tmp_path, "--data", data, "--output", tmp_path / "report"]
    done = commands.run("tools/demo_report.py", *words, *([change] if "=" in change else []))
    assert_refused(done, message)


def test_the_page_shows_what_it_is_given(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert pixels([red, blue]).shape == (2, 192)
    figures = {
        "drawn_names": {
            **measure_recall(GALLERY, ["sun"], [[0, 1, 2, 3]]),
            **{"guidance": 3.0, "temperature": 0.5, "seed": 0},
        },
        "losses": {"heldout/loss_image": {"first_step": 0, "first": 8.0, "last": 4.0, "last_step": 9}},
        "captions": {"seen": measure_captions(GALLERY, [3], ["a dog"])},
        "reconstruction_psnr": {"pictures": 1, "psnr": 21.5},
    }
    pictures = {
        "seen": [("<sun>", red, blue, "moon")],
        "unseen": [("comet", red, blue)],
        "reconstructions": [("cat", red, blue)],
        "captions": {"seen": [("cat", red, "a dog")]},
    }
    report_page.write(tmp_path / "report", figures, [{"step": 0, "heldout/loss_image": 8.0}], pictures, tmp_path)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "&lt;sun&gt;" in page and "<sun>" not in page
    assert "a dog" in page and "nearest: moon" in page and "21.50 dB" in page and "8.000 -&gt; 4.000" in page
    assert ">0 of 1 (0.0%)<" in page and ">1; 25.00%<" in page
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html",
        "figures.json",
        "curves.png",
        "seen.png",
    }


@pytest.mark.parametrize("side", [16, 32, 48])
def test_reconstructions_have_the_size_of_the_shards(tmp_path, side: int):
    """Which need not be the image tokenizer's own, 32 pixels here: shard_images.py has --image-size."""
    from types import SimpleNamespace

    from tokenization.preprocess import open_image, preprocess
    from tokenization.vq import load_vq

    vq = load_vq(save_tiny_vq(tmp_path / "vq", seed=0))
    folder = tmp_path / "corpus/heldout/folder/images"
    folder.mkdir(parents=True)
    for number, name in enumerate(GALLERY.ids):
        drawn = numpy.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=numpy.uint8)
        Image.fromarray(drawn).save(folder / f"{name[0]}.png")
    codes = vq.encode([preprocess(open_image(folder / f"{name[0]}.png"), side) for name in GALLERY.ids])
    gallery = Gallery(GALLERY.names, codes, GALLERY.ids, GALLERY.texts)
    real, decoded, names, psnr = reconstruction(SimpleNamespace(vq=vq), tmp_path, gallery, 4)
    assert {picture.size for picture in [*real, *decoded]} == {(side, side)}
    assert names == ["sun", "moon", "star", "cat"] and 0 < psnr < 30


@pytest.mark.parametrize(
    ("script", "setting"),
    [
        *(
            ("tools/demo_report.py", setting)
            for setting in ("--guidance=nan", "--temperature=-1", "--prompts=0", "--seed=-1")
        ),
        *(("tools/edit_report.py", setting) for setting in ("--guidance=1e39", "--image-guidance=-1", "--per-kind=0")),
    ],
)
def test_settings_out_of_range_are_refused(commands: CommandServer, tmp_path, script, setting):
    name, value = setting.split("=")
    done = commands.run(script, setting, "--model", tmp_path, "--run", tmp_path, "--output", tmp_path)
    assert done.code == 2 and f"argument {name}: {value} is not a number of at least" in done.err


@pytest.mark.parametrize("script, data", [("tools/demo_report.py", "--data"), ("tools/edit_report.py", "--edits")])
def test_an_output_that_cannot_be_a_folder_is_refused_before_the_work(commands: CommandServer, tmp_path, script, data):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "edits.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    done = commands.run(script, "--model", tmp_path, "--run", tmp_path, data, tmp_path, "--output", tmp_path / "file")
    assert_refused(done, str(tmp_path / "file"), "--output")
