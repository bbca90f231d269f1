"""Reconstruction against figures that are computed here from the definitions, and refusals of what is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.pretrain.tiny_run import save_tiny_vq
from tokenization.preprocess import open_image, preprocess
from tokenization.vq import load_vq
from tools import evaluate


@pytest.fixture(scope="module")
def vq(tmp_path_factory) -> Path:
    return save_tiny_vq(tmp_path_factory.mktemp("vq") / "vq", seed=0)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = [{"image": f"{number}.png", "caption": "a picture"} for number in range(3)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def measure(vq: Path, data: Path, output: Path, *more: object) -> dict:
    words = ["--task", "reconstruction", "--vq", vq, "--data", data, "--output", output, *more]
    assert evaluate.main([*map(str, words)]) == 0
    return json.loads((output / "reconstruction.json").read_text())


def test_scores_are_means_over_pictures(vq, pictures, tmp_path):
    found = measure(vq, pictures, tmp_path / "out")
    tokenizer, used, psnr, ssim = load_vq(str(vq)), set(), [], []
    for number in range(3):
        picture = preprocess(open_image(pictures / f"{number}.png"), 32)
        codes = tokenizer.encode([picture])
        used |= set(codes.flatten().tolist())
        a, b = (np.asarray(image, dtype=np.float64) for image in (picture, tokenizer.decode(codes)[0]))
        psnr.append(10 * math.log10(255**2 / ((a - b) ** 2).mean()))
        ssim.append(np.mean([structural_similarity(a[..., channel], b[..., channel]) for channel in range(3)]))
    assert found["scores"]["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert found["scores"]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)
    assert found["scores"]["codes_used"] == len(used) / 64
    assert found["complete"] and found["items"] == {"expected": 3, "done": 3}
    measure(vq, pictures, tmp_path / "again")
    assert (tmp_path / "again/reconstruction.json").read_bytes() == (tmp_path / "out/reconstruction.json").read_bytes()
    assert measure(vq, pictures, tmp_path / "one", "--limit", 1)["items"] == {"expected": 1, "done": 1}


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of Wang et al. (2004) of two channels: Gaussian window of 11 pixels with sigma 1.5, borders reflected."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = (np.pad(x, 5, mode="reflect") for x in (a, b))
    views = [np.lib.stride_tricks.sliding_window_view(x, (11, 11)) for x in (a, b)]
    mean_a, mean_b = ((view * window).sum((-1, -2)) for view in views)
    square_a, square_b = ((view**2 * window).sum((-1, -2)) for view in views)
    both = (views[0] * views[1] * window).sum((-1, -2))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * (both - mean_a * mean_b) + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return float((above / below).mean())


def test_a_damaged_picture_leaves_no_average(vq, pictures, tmp_path):
    (pictures / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 3 are missing .*no average of a part.*not a picture"):
        measure(vq, pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="needs --data"):
        evaluate.main(["--task", "reconstruction", "--vq", str(vq), "--output", str(tmp_path / "x")])
