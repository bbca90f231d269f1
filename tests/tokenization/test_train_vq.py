"""Training of the small image tokenizer: it learns, keeps its codes alive, and writes what load_vq reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy
import pytest
import torch
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tests.small_disk import read_only
from tests.tokenization.corpora import folder_corpus, jsonl, picture, tar, tar_corpus
from tokenization import train_vq, vq_measure
from tokenization.preprocess import open_image, preprocess
from tokenization.vq import load_vq
from tokenization.vq_pictures import PictureBuffer

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--image-size", "32", "--channels", "16", "16", "16", "--codebook-size", "32", "--code-channels", "4"]
QUICK = [*SMALL, "--steps", "60", "--warmup-steps", "20", "--batch-size", "12", "--lr", "4e-3", "--threads", "1"]

SHORT = ["--steps", "4", "--warmup-steps", "2"]


def arguments(data: TinyData, output: Path, *more: str) -> list[str]:
    folders = ["--train", data.corpus / "train/folder", "--heldout", data.corpus / "heldout/folder"]
    return [*map(str, folders), "--output", str(output), *QUICK, *more]


@pytest.fixture(scope="module")
def trained(commands: CommandServer, tiny_data: TinyData, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("vq") / "tiny"
    done = commands.run("tokenization/train_vq.py", *arguments(tiny_data, output))
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1]) == json.loads((output / "training.json").read_text())["heldout"]
    return output


def psnr(vq, pictures: list[Image.Image]) -> float:
    restored = vq.decode(vq.encode(pictures))
    errors = [numpy.asarray(a, float) - numpy.asarray(b, float) for a, b in zip(pictures, restored, strict=True)]
    return -10 * numpy.log10(numpy.mean(numpy.square(errors)) / 255**2)


def test_it_learns_and_its_figures_are_those_of_the_written_weights(trained, tiny_data, monkeypatch, tmp_path):
    vq = load_vq(trained)
    assert (vq.codebook_size, vq.downsample, vq.image_size, vq.name) == (32, 4, 32, "tiny")
    paths = sorted((tiny_data.corpus / "heldout/folder/images").glob("*.png"))
    pictures = [preprocess(open_image(path), 32) for path in paths]
    record = json.loads((trained / "training.json").read_text())
    assert record["heldout"]["pictures"] == len(pictures) > 5
    assert psnr(vq, pictures) == pytest.approx(record["heldout"]["psnr"], abs=0.1)
    codes = vq.encode(pictures)
    assert codes.shape[1:] == (8, 8) and len(numpy.unique(codes)) / 32 == pytest.approx(
        record["heldout"]["codebook_used"], abs=0.07
    )

    monkeypatch.setattr(sys, "argv", ["train_vq.py", *arguments(tiny_data, tmp_path)])
    untrained = train_vq.build_model(train_vq.parse_arguments())
    heldout = PictureBuffer([str(tiny_data.corpus / "heldout/folder")], 32, 1000).small
    before = vq_measure.measure(untrained, heldout)
    assert record["heldout"]["psnr"] > before["psnr"] + 4
    assert record["heldout"]["codebook_used"] > 0.3


def test_the_record_says_how_it_was_made(trained):
    record = json.loads((trained / "training.json").read_text())
    assert "tokenization/train_vq.py --train" in record["command"] and record["arguments"]["seed"] == 0
    assert record["parameters"] > 1000 and record["train"]["pictures"] > record["heldout"]["pictures"]
    assert json.loads((trained / "preprocess.json").read_text()) == {"image_size": 32}
    assert {path.name for path in trained.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "preprocess.json",
        "training.json",
        "reconstructions.png",
    }


def test_the_same_seed_makes_the_same_weights(commands, tiny_data, tmp_path):
    fingerprints = []
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        done = commands.run("tokenization/train_vq.py", *arguments(tiny_data, tmp_path / name, *SHORT, *more))
        assert done.code == 0, done.err
        fingerprints.append(load_vq(tmp_path / name).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_codebook_moves_to_its_vectors_and_restarts_what_is_dead():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]]), requires_grad=False)
    codebook = train_vq.MovingCodebook(weight, decay=0.5)
    vectors = torch.tensor([[0.2, 0.0], [0.4, 0.0], [1.0, 2.0]])
    codes = codebook.assign(vectors)
    assert codes.tolist() == [0, 0, 1]
    codebook.update(vectors, codes, generator)
    # counts 1 -> 0.5 * 1 + 0.5 * n, sums likewise: code 0 at (0.5 * 0 + 0.5 * 0.6) / 1.5
    torch.testing.assert_close(weight.data[:2], torch.tensor([[0.2, 0.0], [1.0, 1.5]]))
    for _ in range(4):
        codebook.update(vectors, codebook.assign(vectors), generator)
    assert (weight.data[2] < 3).all()  # used by nothing for several steps, it was put back among the vectors
    assert torch.isfinite(weight.data).all()


def test_the_learning_rate_warms_up_and_ends_at_two_percent(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_vq.py", "--train", "a", "--heldout", "b", "--output", "c", "--lr", "1.0"])
    options = train_vq.parse_arguments()
    rates = [train_vq.learning_rate(step, options) for step in (0, 99, 199, 200, options.steps)]
    assert rates == pytest.approx([0.005, 0.5, 1.0, 1.0, 0.02])


def test_bad_pictures_are_named(commands, tiny_data, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        PictureBuffer([str(tmp_path / "nowhere")], 32, 9)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/text.png").write_text("not a picture")
    done = commands.run(
        "tokenization/train_vq.py", *arguments(tiny_data, tmp_path / "out", "--train", str(tmp_path / "images"))
    )
    assert_refused(done, "no picture that can be used (not_a_picture 1)")
    assert "text.png" in done.out and not (tmp_path / "out").exists()
    done = commands.run("tokenization/train_vq.py", *arguments(tiny_data, tmp_path / "out", "--batch-size", "999"))
    assert_refused(done, "training pictures are fewer than --batch-size 999: give a smaller one, or more pictures")


def test_a_folder_that_takes_no_file_is_refused_before_training(commands, tiny_data, tmp_path):
    (tmp_path / "file").write_text("mine")
    with read_only(tmp_path / "read-only") as folder:
        for output in (tmp_path / "file", folder, folder / "new"):
            done = commands.run("tokenization/train_vq.py", *arguments(tiny_data, output))
            assert_refused(done, f"{output}: ", "choose another --output")
            assert "step" not in done.out
    assert (tmp_path / "file").read_text() == "mine"


def stopped(words: list[str], when: str) -> tuple[int, str, str]:
    """Exit code and what is printed of a training, of 16 px to be quick, that gets Ctrl-C after a line with `when`."""
    words = [*words, "--image-size", "16", "--channels", "16", "16", "--batch-size", "2", "--steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "tokenization/train_vq.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out = ""
        for line in process.stdout:
            out += line
            if when in line:
                break
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, out + rest, err


def test_ctrl_c_says_what_is_saved_and_how_to_go_on(tiny_data, tmp_path):
    output = tmp_path / "out"
    code, out, err = stopped(arguments(tiny_data, output, "--warmup-steps", "5"), "held-out PSNR")
    assert code == 130 and err.count("\n") == 1, err
    saved = json.loads((output / "training.json").read_text())["step"]
    assert f"{output} is that of step {saved}, --start {output} goes on from it" in out.splitlines()[-1]
    load_vq(str(output))


def test_ctrl_c_before_anything_is_quantised_leaves_nothing(tiny_data, tmp_path):
    """The weights of the first phase have no codebook: they are no tokenizer, at a check neither."""
    output = tmp_path / "out"
    code, out, _ = stopped(arguments(tiny_data, output, "--warmup-steps", "99999"), "held-out PSNR")
    assert code == 130 and out.splitlines()[-1].endswith("nothing is saved yet")
    assert not (output / "training.json").exists()


def test_any_corpus_gives_its_pictures_in_order_and_round_and_round(tmp_path):
    folder, tars = folder_corpus(tmp_path / "folder", 7), tar_corpus(tmp_path / "tars", 7, per_tar=3)
    (tmp_path / "folder/images/zz.jpg").write_bytes(b"no picture")
    told = []
    whole = PictureBuffer([str(folder)], 16, 100, with_large=True, warn=told.append)
    assert whole.small.shape == (7, 3, 16, 16) and whole.large.shape == (7, 3, 32, 32) and whole.is_whole
    assert whole.rejected.counts == {"not_a_picture": 1} and "zz.jpg" in told[0]
    assert torch.equal(PictureBuffer([str(tars)], 16, 100).small, whole.small)
    some = PictureBuffer([str(tars)], 16, 3)
    seen = [some.small]
    for _ in range(3):
        some.refill()
        seen.append(some.small)
    assert [len(part) for part in seen] == [3, 3, 1, 3] and torch.equal(torch.cat(seen[:3]), whole.small)
    assert torch.equal(seen[3], seen[0]) and not some.is_whole


def test_what_is_left_out_is_told_by_reason_with_the_first_of_each(commands, tmp_path):
    """Also records that the reader rejects, pictures inside of a table's file, and those of --heldout."""
    lines = [json.loads(line) for line in (folder_corpus(tmp_path / "c", 14) / "captions.jsonl").open()]
    for name in ("bad1.png", "bad2.png"):
        (tmp_path / "c" / name).write_bytes(b"no picture")
    (tmp_path / "c/cut.png").write_bytes(picture(1, 64)[:200])
    moving = Image.open(tmp_path / "c/images/003.png")
    moving.save(tmp_path / "c/moving.gif", save_all=True, append_images=[moving.rotate(90)])
    more = [{"image": name, "caption": "x"} for name in ("bad1.png", "cut.png", "bad2.png", "moving.gif", "none.png")]
    listed = jsonl(tmp_path / "c/more.jsonl", [*lines, *more, {"image": "bad1.png"}])
    heldout = tar(tmp_path / "held.tar", [("a.png", picture(3)), ("a.txt", b"a"), ("b.png", b"x"), ("b.txt", b"b")])
    words = ("--train", listed, "--heldout", heldout, "--output", tmp_path / "vq", *QUICK, *SHORT)
    done = commands.run("tokenization/train_vq.py", *words, "--batch-size", "4")
    assert done.code == 0, done.err
    reasons = "not_a_picture 2, undecodable_picture 1, missing_file 1, missing_key 1"
    assert f"--train: 5 left out ({reasons})" in done.out.splitlines()
    assert "--train: 1 picture has further frames or pages, which are left out, as moving.gif" in done.out.splitlines()
    assert "--heldout: 1 left out (not_a_picture 1)" in done.out.splitlines()
    told = [line for line in done.out.splitlines() if line.startswith("warning: rejected as ")]
    files = ("bad1.png", "cut.png", "none.png", "more.jsonl:20", "held.tar/b.png")
    assert [line.split(": ")[2] for line in told] == list(files)
    assert json.loads((tmp_path / "vq/training.json").read_text())["left_out"] == {
        "train": {
            "not_a_picture": 2,
            "undecodable_picture": 1,
            "missing_file": 1,
            "missing_key": 1,
            "further_frames": 1,
        },
        "heldout": {"not_a_picture": 1},
    }


def test_each_pass_counts_what_it_leaves_out_once(tmp_path):
    folder = folder_corpus(tmp_path / "folder", 5)
    (folder / "images/zz.jpg").write_bytes(b"no picture")
    buffer = PictureBuffer([str(folder)], 16, 4, warn=lambda line: None)
    assert not buffer.rejected.counts  # it is the last, and not yet read
    for _ in range(5):
        buffer.refill()
    assert buffer.rejected.counts == {"not_a_picture": 1} and not buffer.is_whole


def test_a_twentieth_is_held_out_of_pictures_of_ones_own_and_the_sheet_is_drawn(commands, tmp_path):
    folder = folder_corpus(tmp_path / "folder", 40)
    done = commands.run(
        "tokenization/train_vq.py",
        "--train",
        folder,
        "--output",
        tmp_path / "vq",
        *QUICK,
        *SHORT,
        "--augment",
        "none",
        "--precision",
        "fp32",
    )
    assert done.code == 0, done.err
    assert "38 training pictures, 2 held out, 0 left out" in done.out and "cpu in fp32" in done.out
    with Image.open(tmp_path / "vq/reconstructions.png") as sheet:
        assert min(sheet.size) > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "20"], "--steps 20 ends within --warmup-steps 20"),
        (["--channels", "16", "20"], "must be multiples of 16"),
        (["--image-size", "30"], "must be a multiple of 4"),
        (["--device", "meta"], "--device meta has shapes without data"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_what_cannot_become_a_tokenizer_is_refused_at_once(monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["train_vq.py", "--train", "a", "--output", "b", *QUICK, *options])
    with pytest.raises(SystemExit) as ended:
        train_vq.parse_arguments()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_picture_that_a_bucket_lacks_is_counted(tmp_path):
    folder = folder_corpus(tmp_path / "folder", 3)
    with (folder / "captions.jsonl").open("a") as captions:
        captions.write(json.dumps({"image": "images/none.png", "caption": "x"}) + "\n")
    fsspec.filesystem("memory").put(str(folder), "/vq-lacks", recursive=True)
    buffer = PictureBuffer(["memory://vq-lacks"], 16, 8, warn=lambda line: None)
    assert buffer.rejected.counts == {"missing_file": 1} and len(buffer.small) == 3
