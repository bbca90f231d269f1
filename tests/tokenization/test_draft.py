"""`--draft`: JPEGs decoded smaller, only where asked for, recorded, and never with another outcome of a filter."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tokenization.corpora import Command, contents, jsonl
from tokenization.pipeline import Preparation
from tokenization.preprocess import RejectedImage, open_image, preprocess


def jpeg(size: tuple[int, int], seed: int = 0, **options) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(4):
        (folder / f"{seed}.jpg").write_bytes(jpeg((400, 300), seed))
    return jsonl(
        folder / "captions.jsonl", [{"image": f"{seed}.jpg", "caption": "a", "id": str(seed)} for seed in range(4)]
    ).parent


@pytest.mark.parametrize(
    ("size", "draft", "decoded"),
    [
        ((800, 600), 0, (800, 600)),
        ((800, 600), 150, (200, 150)),
        ((800, 600), 151, (400, 300)),
        ((800, 600), 700, (800, 600)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_is_enough(size, draft, decoded):
    assert open_image(jpeg(size), draft=draft).size == decoded


def test_colours_stay_near_and_turned_pictures_turn():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg((800, 600), exif=exif)
    plain, drafted = (np.asarray(preprocess(open_image(data, draft=draft), 64)).astype(int) for draft in (0, 128))
    assert 0 < np.abs(plain - drafted).max() <= 12
    grey = io.BytesIO()
    Image.new("L", (800, 600), 77).save(grey, "JPEG")
    assert np.abs(np.asarray(preprocess(open_image(grey.getvalue(), draft=128), 64)).astype(int) - 77).max() <= 1


def test_a_filter_sees_the_size_that_the_file_has():
    seen = []
    open_image(jpeg((801, 603)), draft=100, check=lambda *size: seen.append(size))
    assert seen == [(801, 603)]
    with pytest.raises(RejectedImage):
        open_image(jpeg((400, 300)), max_pixels=100_000, draft=16)


def test_without_the_flag_nothing_is_drafted_and_with_it_that_is_recorded(command: Command, tmp_path: Path):
    folder = photographs(tmp_path / "in")
    assert Preparation(None, 64).draft_side() == 0 and Preparation(None, 64, draft=True).draft_side() == 128
    assert command([folder], tmp_path / "plain")[0] == 0 and command([folder], tmp_path / "draft", "--draft")[0] == 0
    plain, drafted = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "draft"))
    assert "draft" not in plain["vq"] and drafted["vq"]["draft"] is True
    assert json.loads((tmp_path / "draft/job.json").read_text())["vq"]["draft"] is True
    assert plain["fingerprint"] != drafted["fingerprint"]


def test_a_dataset_goes_on_only_as_it_began(command: Command, tmp_path: Path):
    folder = photographs(tmp_path / "in")
    assert command([folder], tmp_path / "out", "--draft")[0] == 0
    before = contents(tmp_path / "out")
    code, stderr = command([folder], tmp_path / "out")
    assert code == 2 and "it was started with --draft, and now it is without it" in stderr
    assert command([folder], tmp_path / "out", "--draft")[0] == 0 and contents(tmp_path / "out") == before
    assert command([folder], tmp_path / "plain")[0] == 0
    code, stderr = command([folder], tmp_path / "plain", "--draft")
    assert code == 2 and "it was started with no --draft, and now it is with it" in stderr
