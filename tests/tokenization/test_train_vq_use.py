"""Wrong use of train_vq.py: refused in one line before it trains, or told; nothing of the user's is written over."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tests.tokenization.corpora import folder_corpus, picture, tar_corpus
from tests.tokenization.test_readers_borders import write
from tests.tokenization.test_train_vq import QUICK, SHORT
from tokenization import train_vq
from tokenization.job import locked
from tokenization.vq_pictures import PictureBuffer, lies_in


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return folder_corpus(tmp_path_factory.mktemp("photos") / "folder", 14)


@pytest.fixture(scope="module")
def start(commands: CommandServer, photos: Path, tmp_path_factory) -> Path:
    """Weights of an earlier run, of 32 px."""
    output = tmp_path_factory.mktemp("start") / "vq"
    done = trained(commands, photos, output)
    assert done.code == 0, done.err
    return output


def trained(commands: CommandServer, photos: Path, output: Path, *more: object):
    words = ("--train", photos, "--output", output, *QUICK, *SHORT, "--batch-size", 4)
    return commands.run("tokenization/train_vq.py", *words, *more)


def parsed(monkeypatch, *more: object):
    monkeypatch.setattr(sys, "argv", ["train_vq.py", "--train", "a", "--output", "b", *map(str, more)])
    return train_vq.parse_arguments()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "nan"], "--lr must be above 0, and finite, got nan"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--memory", "inf"], "--memory must be above 0, and finite"),
        (["--memory", "0"], "--memory must be above 0"),
        (["--warmup-steps", "-1"], "--warmup-steps must be 0 or more"),
        (["--threads", "-1"], "--threads must be 0 or more"),
        (["--seed", "99999999999999999999"], "--seed must be 0 or more, in 63 bits"),
        (["--codebook-size", "70000"], "--codebook-size is at most 65536, what shards hold, got 70000"),
        (["--image-size", "100000"], "--memory 2 GB holds no picture of --image-size 100000: give more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_what_start_has_is_taken_from_it_and_nothing_else_asked_of_it(start, monkeypatch, capsys, tmp_path):
    options = parsed(monkeypatch, "--start", start)
    found = (options.image_size, options.channels, options.codebook_size, options.code_channels)
    assert found == (32, [16, 16, 16], 32, 4)
    assert parsed(monkeypatch, "--start", start, "--codebook-size", 32, "--image-size", 64).image_size == 64
    for more in (["--codebook-size", 64], ["--channels", 16, 32], ["--code-channels", 8]):
        with pytest.raises(SystemExit):
            parsed(monkeypatch, "--start", start, *more)
        assert f"{more[0]} {' '.join(map(str, more[1:]))}: --start {start} has " in capsys.readouterr().err
    with pytest.raises(UserError, match="nowhere/config.json: cannot be read"):
        parsed(monkeypatch, "--start", tmp_path / "nowhere")
    with pytest.raises(UserError, match="its config.json is of no VQModel"):
        parsed(monkeypatch, "--start", write(tmp_path / "other", {"config.json": "{}"}))
    broken = write(tmp_path / "broken", {"config.json": (start / "config.json").read_bytes()})
    with pytest.raises(UserError, match="--start .*broken: cannot be read"):
        train_vq.build_model(parsed(monkeypatch, "--start", broken))


def test_weights_that_shards_need_are_not_written_over(commands, photos, start, tmp_path):
    before = (start / "training.json").read_bytes()
    assert_refused(trained(commands, photos, start), "holds an image tokenizer already", f"--start {start}")
    assert (start / "training.json").read_bytes() == before
    done = trained(commands, photos, start, "--start", start)
    assert done.code == 0 and json.loads((start / "training.json").read_text())["arguments"]["start"] == str(start)


def test_two_trainings_never_write_to_one_folder(commands, photos, tmp_path):
    (tmp_path / "vq").mkdir()
    with locked(tmp_path / "vq", alone=True):
        assert_refused(trained(commands, photos, tmp_path / "vq"), "vq: another process is writing to it")


def test_an_output_among_the_pictures_is_refused(commands, photos):
    for output in (photos, photos / "images/vq"):
        assert_refused(trained(commands, photos, output), f"--output {output}: lies in the input {photos}")
    assert not (photos / "images/vq").exists()


def test_pictures_that_are_trained_on_are_not_held_out(commands, photos, tmp_path):
    for heldout in (photos, photos / "images", photos.parent):
        done = trained(commands, photos, tmp_path / "vq", "--heldout", heldout)
        assert_refused(done, f"--heldout {heldout}: its pictures are among those of --train {photos}")
    assert not (tmp_path / "vq").exists()


def test_tars_in_a_folder_of_pictures_are_not_among_them(tmp_path):
    """A folder of pictures is read at any depth, tars in it are not: they may be held out."""
    photos = folder_corpus(tmp_path / "photos", 2)
    tars = tar_corpus(photos / "tars", 2, per_tar=2)
    (table := photos / "captions.jsonl").write_text("")
    for path, expected in ((tars, False), (tars / "00000.tar", False), (table, True), (photos / "images", True)):
        assert lies_in(str(path), str(photos)) is expected
    assert lies_in(str(photos), f"{photos}/../{photos.name}") and not lies_in(str(photos), f"{photos}-more")


def test_a_loss_that_is_no_number_ends_the_training(commands, photos, tmp_path):
    done = trained(commands, photos, tmp_path / "vq", "--lr", "1e30", "--steps", "40")
    assert done.code == 1 and done.err.count("\n") == 1, done.err
    assert ": begin again with a lower --lr than 1e+30" in done.err
    assert not (tmp_path / "vq/config.json").exists()


def test_what_lies_beside_the_pictures_is_told_and_counted(tmp_path):
    folder = tar_corpus(tmp_path / "in", 4, per_tar=2)
    write(folder, {"a.png": picture(0), "a.heic": "x", "b.heic": "x", ".hidden/c.png": picture(1), "c.txt": "x"})
    told: list[str] = []
    buffer = PictureBuffer([str(folder)], 16, 8, warn=told.append)
    assert len(buffer.small) == 1 and buffer.rejected.counts == {"not_a_picture": 1}
    assert told[0] == f"warning: {folder}: not used beside its picture files: 2 such as 00000.tar: name them too"
    assert "b.heic: .heic is not read: save it as JPEG" in told[1] and len(told) == 2
