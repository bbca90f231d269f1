"""Filters: what is put aside and why, the same on every run; and a decoder that never ends."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tokenization.corpora import Command, contents, error_line, folder_corpus, jsonl, picture, rejects_of
from tokenization.filters import SeenPictures, picture_hash, within
from tokenization.preprocess import RejectedImage
from tokenization.shards import open_dataset


def drawn(seed: int, size: tuple[int, int] = (64, 64), file_format: str = "PNG", **options) -> bytes:
    """The same picture for the same seed, in any size and format."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, file_format, **options)
    return buffer.getvalue()


def corpus(folder: Path, files: dict[str, bytes], captions: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lines = [{"image": name, "caption": (captions or {}).get(name, "some words")} for name in files]
    return jsonl(folder / "captions.jsonl", lines).parent


def test_every_filter_counts_what_it_puts_aside(command: Command, tmp_path: Path):
    files = {name: picture(seed) for seed, name in enumerate(["good.png", "short.png", "long.png"])}
    files |= {"small.png": drawn(1, (20, 15)), "strip.png": drawn(2, (90, 30)), "large.png": drawn(3, (80, 80))}
    folder = corpus(tmp_path / "corpus", files, {"short.png": "x", "long.png": "x" * 50})
    limits = {"min_side": 16, "max_aspect": 2.5, "min_text": 2, "max_text": 40, "max_pixels": 6000, "max_rejects": 1}
    assert command(folder, tmp_path / "out", **limits)[0] == 0
    dataset = open_dataset(tmp_path / "out")
    assert [found["id"] for found in dataset] == ["good.png"]
    reasons = {reject["id"]: reject["reason"] for reject in rejects_of(tmp_path / "out")}
    assert reasons == {
        "short.png": "short_text",
        "long.png": "long_text",
        "small.png": "small_picture",
        "strip.png": "extreme_aspect",
        "large.png": "too_many_pixels",
    }
    assert dataset.manifest["filters"]["max_aspect"] == 2.5
    assert dataset.manifest["rejects"] == dict.fromkeys(sorted(reasons.values()), 1)
    code, stderr = command(folder, tmp_path / "out", **limits | {"min_side": 8})
    assert code == 2 and "it was started with --min-side 16, and now it is 8" in error_line(stderr)


def test_duplicates_are_found_through_scaling_and_compression_and_after_a_restart(command: Command, tmp_path: Path):
    files = {f"{seed}.png": drawn(seed) for seed in range(12)}
    files |= {"again.jpg": drawn(3, file_format="JPEG", quality=80), "larger.png": drawn(4, (128, 128))}
    folder = corpus(tmp_path / "corpus", files)
    options = {"duplicate_bits": 3, "max_rejects": 0.5, "samples_per_part": 3}
    assert command(folder, tmp_path / "out", **options)[0] == 0
    assert [reject["id"] for reject in rejects_of(tmp_path / "out")] == ["again.jpg", "larger.png"]
    whole = contents(tmp_path / "out")
    for part in (1, 4):  # the parts before and after it are known already
        shutil.rmtree(tmp_path / f"out/parts/000000.{part:04d}")
        (tmp_path / "out/manifest.json").unlink()
        assert command(folder, tmp_path / "out", **options)[0] == 0
        assert contents(tmp_path / "out") == whole
    assert command(folder, tmp_path / "all", samples_per_part=3)[0] == 0
    assert len(open_dataset(tmp_path / "all")) == 14


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(40, 200), st.integers(60, 95))
def test_a_hash_survives_what_happens_to_pictures_and_tells_others_apart(seed: int, size: int, quality: int):
    pictures = [drawn(seed), drawn(seed, (size, size), "JPEG", quality=quality), drawn(seed + 1)]
    hashes = [picture_hash(Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32))) for data in pictures]
    seen = SeenPictures(bits=6)
    seen.add(hashes[0][None])
    assert seen.find(hashes[1][None]) == 0
    assert seen.find(hashes[2][None]) is None


def test_plain_colours_are_told_apart_by_their_colour():
    seen = SeenPictures(bits=0)
    red, blue, reddish = (picture_hash(Image.new("RGB", (16, 16), colour)) for colour in ("#f00", "#00f", "#fc0101"))
    seen.add(red[None])
    assert seen.find(blue[None]) is None and seen.find(np.stack([blue, reddish])) == 1


def test_a_decoder_that_does_not_end_is_left_behind():
    release = threading.Event()
    with pytest.raises(RejectedImage, match="more than 0.05 s") as error:
        within(0.05, lambda: release.wait(30))
    release.set()
    assert error.value.reason == "too_slow"
    assert within(5, lambda: 3) == within(0, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


@pytest.mark.parametrize(("option", "value"), [("duplicate_bits", 65), ("min_side", -1), ("picture_seconds", -1)])
def test_values_out_of_range(command: Command, tmp_path: Path, option: str, value: int):
    code, stderr = command(folder_corpus(tmp_path / "corpus", 1), tmp_path / "out", **{option: value})
    assert code == 2 and f"--{option.replace('_', '-')}" in stderr
