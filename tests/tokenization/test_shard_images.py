"""From corpora to a dataset: the right codes, the same bytes whatever the workers, and nothing lost by a kill."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tokenization.corpora import (
    Command,
    captions,
    child,
    contents,
    error_line,
    folder_corpus,
    jsonl,
    parquet_corpus,
    rejects_of,
    tar_corpus,
)
from tokenization import parts, shard_images
from tokenization.files import publish_folder
from tokenization.preprocess import preprocess
from tokenization.shards import open_dataset
from tokenization.text_tokenizer import load_text_tokenizer
from tokenization.vq import load_vq

COUNT = 40
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, vq_folder: Path, tokenizer_folder: Path) -> Path:
    """`corpus`, with a bad picture, a bad line and an id that comes again in a later part, and its `reference`."""
    folder = tmp_path_factory.mktemp("pristine")
    corpus = folder_corpus(folder / "corpus", COUNT)
    (corpus / "images/009.png").write_text("no picture")
    lines = (corpus / "captions.jsonl").read_bytes().splitlines()
    lines[20] = b'{"image": "images/020.png", "id": "020"}'
    lines[30] = b'{"image": "images/030.png", "caption": "again", "id": "003"}'
    jsonl(corpus / "captions.jsonl", lines)
    assert shard_images.main(Command(vq_folder, tokenizer_folder).arguments(corpus, folder / "reference")) == 0
    return folder


@pytest.fixture
def corpus(pristine: Path, tmp_path: Path) -> Path:
    """The corpus, for this test alone."""
    return shutil.copytree(pristine / "corpus", tmp_path / "corpus")


@pytest.fixture
def reference(pristine: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the dataset of an undisturbed run, which also lies in tmp_path / "reference"."""
    return contents(shutil.copytree(pristine / "reference", tmp_path / "reference"))


def test_a_dataset_holds_what_the_tokenizers_give(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "cats", 11)
    code, stderr = command(folder, tmp_path / "out", batch_size=3, workers=2)
    assert code == 0
    dataset = open_dataset(tmp_path / "out")
    vq, tokenizer = load_vq(command.vq), load_text_tokenizer(command.tokenizer)
    for seed, found in enumerate(dataset):
        picture = preprocess(Image.open(folder / f"images/{seed:03d}.png"), 16)
        assert np.array_equal(found["codes"].reshape(found["grids"]), vq.encode([picture])[0])
        assert found["text_ids"].tolist() == np.concatenate(tokenizer.encode(captions(seed))).tolist()
        assert (found["id"], found["source"], found["texts"]) == (f"{seed:03d}", "cats", captions(seed))
    assert len({found["codes"].tobytes() for found in dataset}) == 11
    manifest = dataset.manifest
    assert manifest["vq"]["fingerprint"] == vq.fingerprint
    assert manifest["vq"] | {"fingerprint": ""} == {
        "name": "tiny-0",
        "fingerprint": "",
        "codebook_size": 32,
        "downsample": 2,
        "image_size": 16,
    }
    assert manifest["tokenizer"]["sha256"] == tokenizer.sha256
    assert manifest["sources"] == {"cats": 11} and manifest["rejects"] == {}
    assert manifest["counts"]["documents"] == manifest["counts"]["pictures"] == 11
    assert "captions, 1 file, 0.0 MB; source 'cats'" in stderr
    assert re.search(r"encoder busy \d+% of [\d.]+ s .*pictures/s; starting up took", stderr)


def test_every_layout_gives_the_same_codes(command: Command, tmp_path: Path):
    inputs = [
        folder_corpus(tmp_path / "folder", 10),
        tar_corpus(tmp_path / "tars", 10, per_tar=4),
        parquet_corpus(tmp_path / "struct.parquet", 10, as_struct=True),
    ]
    assert command(inputs, tmp_path / "all")[0] == 0
    dataset = open_dataset(tmp_path / "all")
    assert dataset.manifest["sources"] == {"folder": 10, "tars": 10, "struct": 10}
    documents = [[dataset[start + number] for start in (0, 10, 20)] for number in range(10)]
    for first, *others in documents:
        for other in others:
            assert other["id"] == first["id"] and np.array_equal(other["codes"], first["codes"])


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 32), (0, 1), (3, 5)])
def test_bytes_do_not_depend_on_workers_or_batches(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes], workers: int, batch_size: int
):
    assert command(corpus, tmp_path / "out", workers=workers, batch_size=batch_size)[0] == 0
    assert contents(tmp_path / "out") == reference


def test_plain_text(command: Command, tmp_path: Path):
    texts = ["one", "zwei ü", "三"] * 5
    lines = jsonl(tmp_path / "news.jsonl", [{"text": text} for text in texts])
    assert command(lines, tmp_path / "out", samples_per_part=4)[0] == 0
    dataset = open_dataset(tmp_path / "out")
    assert [found["texts"] for found in dataset] == [[text] for text in texts]
    assert all(found["kind"] == "text" and not found["codes"].size and not found["grids"].size for found in dataset)
    assert [found["text_ids"].size for found in dataset] == [len(text.encode()) for text in texts]
    assert dataset.manifest["counts"]["pictures"] == 0


def test_control_tokens_in_captions_are_only_letters(command: Command, tmp_path: Path):
    caption = "a <|vision_start|> b"
    lines = jsonl(tmp_path / "text.jsonl", [{"text": caption}])
    assert command(lines, tmp_path / "out")[0] == 0
    assert open_dataset(tmp_path / "out")[0]["text_ids"].size == len(caption)


def test_another_picture_size(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 3)
    assert command(folder, tmp_path / "out", image_size=24)[0] == 0
    dataset = open_dataset(tmp_path / "out")
    assert [found["grids"].tolist() for found in dataset] == [[12, 12]] * 3
    assert dataset.manifest["vq"]["image_size"] == 24
    code, stderr = command(folder, tmp_path / "odd", image_size=15)
    assert code == 2 and "--image-size 15 is not a multiple of 2" in error_line(stderr)


def test_killed_at_random_moments_every_picture_is_there_once(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes]
):
    output, moments = tmp_path / "out", random.Random(0)
    arguments = command.arguments(corpus, output, workers=2, batch_size=4)
    longest, killed = 1.0, 0
    while killed < 6:
        process = child(lambda: shard_images.main(arguments))
        time.sleep(moments.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            killed += 1
        else:  # it was quicker than the kill
            assert contents(output) == reference
            shutil.rmtree(output)
            longest *= 0.7
    assert command(corpus, output, workers=2, batch_size=4)[0] == 0
    assert contents(output) == reference
    ids = [found["id"] for found in open_dataset(output)]
    assert ids == [f"{seed:03d}" for seed in range(COUNT) if seed not in (9, 20, 30)]
    assert [reject["id"] for reject in rejects_of(output)] == ["009", "020", "003"]


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("before", [True, False])
def test_killed_before_or_after_every_step_of_publishing(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes], first: int, before: bool
):
    """Killed at its `first` fsync, rename or replace, then started again and killed one such step later, and so on."""
    output = tmp_path / "out"
    arguments = command.arguments(corpus, output)

    def killed_at(number: int) -> int:
        steps = 0

        def last_step(original):
            def step(*values):
                nonlocal steps
                steps += 1
                if steps < number or not before:
                    original(*values)
                if steps == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            return step

        for name in ("fsync", "rename", "replace"):
            setattr(os, name, last_step(getattr(os, name)))
        return shard_images.main(arguments)

    kills = 0
    while os.WIFSIGNALED(status := os.waitpid(child(lambda: killed_at(first + kills)), 0)[1]):  # noqa: B023
        kills += 1
    assert status == 0 and kills > 5
    assert contents(output) == reference


def test_a_finished_dataset_is_left_alone(command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes]):
    code, stderr = command(corpus, tmp_path / "reference")
    assert code == 0 and "finished already, 37 documents" in stderr
    assert contents(tmp_path / "reference") == reference


@pytest.mark.parametrize("name", ["shard.00000.mds", "part.json", "lengths.npz"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_part_is_made_again(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes], name: str, finished: bool
):
    output = tmp_path / "reference"
    path = output / "parts/000000.0001" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if not finished:
        (output / "manifest.json").unlink()
        (output / "files/000000.json").unlink()
    elif name != "shard.00000.mds":  # the finished dataset does without it, until it must be made again
        (output / "lengths/offsets.npy").unlink()
    if name == "part.json" and finished:
        (output / "files/000000.json").write_text("{}")
    code, stderr = command(corpus, output)
    assert code == 0 and f"parts/000000.0001/{name}" in stderr and "made again" in stderr
    assert contents(output) == reference


def test_a_job_goes_on_only_as_it_was_started(
    command: Command, corpus: Path, tmp_path: Path, other_vq_folder: Path, reference: dict[str, bytes]
):
    output = tmp_path / "reference"
    (output / "manifest.json").unlink()
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(command.tokenizer, tokenizer)
    text = (tokenizer / "tokenizer.json").read_text()
    (tokenizer / "tokenizer.json").write_text(text.replace("<|vision_start|>", "<|start|>"))
    other = folder_corpus(tmp_path / "other", COUNT)
    changes = {
        "a VQ model of fingerprint": (corpus, {"vq": other_vq_folder}),
        "a tokenizer.json of SHA-256": (corpus, {"tokenizer": tokenizer}),
        "--image-size 16, and now it is 32": (corpus, {"image_size": 32}),
        "--samples-per-part 8, and now it is 9": (corpus, {"samples_per_part": 9}),
        "the inputs corpus, and now they are other": (other, {}),
    }
    for message, (source, options) in changes.items():
        code, stderr = command(source, output, **options)
        assert code == 2 and f"it was started with {message}" in error_line(stderr)
    jsonl(corpus / "captions.jsonl", [{"image": "images/000.png", "caption": "new"}])
    code, stderr = command(corpus, output)
    assert code == 2 and re.search(r"captions.jsonl of [\d,]+ bytes in input 'corpus', and now", error_line(stderr))
    shutil.copy(corpus / "captions.jsonl", corpus / "more.jsonl")
    code, stderr = command(corpus, output)
    assert code == 2 and "captions.jsonl of" in error_line(stderr)


def test_a_file_that_changes_its_content_and_not_its_size_is_noticed(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes]
):
    output = tmp_path / "reference"
    (output / "manifest.json").unlink()
    (output / "files/000000.json").unlink()
    path = corpus / "captions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"picture", b"drawing", 1))
    code, stderr = command(corpus, output)
    assert code == 2 and "another content of captions.jsonl in input 'corpus'" in error_line(stderr)


def test_a_job_that_moved_goes_on(command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes]):
    (tmp_path / "reference/manifest.json").unlink()
    shutil.move(tmp_path / "reference", tmp_path / "moved")
    shutil.move(corpus, tmp_path / "elsewhere")
    assert command(f"corpus={tmp_path / 'elsewhere'}", tmp_path / "moved")[0] == 0
    assert contents(tmp_path / "moved") == reference


def test_two_processes_never_write_to_one_folder(command: Command, corpus: Path, tmp_path: Path):
    import fcntl

    output = tmp_path / "out"
    output.mkdir()
    other = os.open(output, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    code, stderr = command(corpus, output)
    assert code == 2 and "another process is writing to it" in error_line(stderr)
    os.close(other)
    assert command(corpus, output)[0] == 0


def test_the_fingerprint_of_a_dataset_changes_with_its_pictures(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes]
):
    shutil.copy(corpus / "images/001.png", corpus / "images/002.png")
    assert command(corpus, tmp_path / "changed")[0] == 0
    fingerprints = [open_dataset(tmp_path / name).fingerprint for name in ("reference", "changed")]
    assert fingerprints[0] != fingerprints[1]


def test_help_and_usage_errors_need_no_torch():
    for arguments, code in ((["--help"], 0), (["--output", "x"], 2), (["--workers", "-1"], 2)):
        script = (
            "import runpy, sys\n"
            f"sys.argv = ['shard_images.py', *{arguments!r}]\n"
            "try:\n    runpy.run_path('tokenization/shard_images.py', run_name='__main__')\n"
            "finally:\n    assert not {'torch', 'numpy', 'streaming'} & set(sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr


def test_a_full_disk_is_one_line_and_the_job_goes_on_later(
    command: Command, corpus: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    def full(temporary: Path, path: Path) -> None:
        if path.name == "000000.0002":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        publish_folder(temporary, path)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(parts, "publish_folder", full)
        code, stderr = command(corpus, output, workers=2)
    assert code == 1 and "parts/000000.0002: No space left on device" in error_line(stderr)
    assert sorted(path.name for path in (output / "parts").glob("0*")) == ["000000.0000", "000000.0001"]
    assert command(corpus, output)[0] == 0
    assert contents(output) == reference
