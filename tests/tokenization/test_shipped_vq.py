"""The image tokenizer that comes with the repository: its figures hold on held-out pictures rendered here."""

from __future__ import annotations

import io
import json

import numpy
import pytest
from PIL import Image

from tokenization.demo_corpus import emoji_names, render_all, split_by_concept
from tokenization.preprocess import preprocess
from tokenization.vq import SHIPPED, load_vq
from tokenization.vq_base import VQ


@pytest.fixture(scope="module")
def vq() -> VQ:
    return load_vq("openmoji-64")


@pytest.fixture(scope="module")
def heldout() -> list[Image.Image]:
    """Held-out pictures among the first 700 of the corpus, as the tokenizer gets them."""
    records = split_by_concept(render_all(128, emoji_names(["en", "de", "zh"]), limit=700), 0.1)["heldout"]
    return [preprocess(Image.open(io.BytesIO(record["png"])), 64) for record in records]


def test_heldout_pictures_survive_the_codes(vq, heldout):
    assert len(heldout) >= 30
    codes = vq.encode(heldout)
    assert codes.shape == (len(heldout), 8, 8) and codes.dtype == numpy.uint16
    real, decoded = (numpy.stack([numpy.asarray(p, dtype=float) for p in side]) for side in (heldout, vq.decode(codes)))
    error = ((real - decoded) ** 2).mean(axis=(1, 2, 3)) / 255**2
    assert (-10 * numpy.log10(error)).mean() >= 21, "mean PSNR over held-out pictures"
    assert len(numpy.unique(codes)) >= 512, "half of the codebook"


def test_weights_are_small_and_their_record_is_complete(vq):
    folder = SHIPPED["openmoji-64"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
    record = json.loads((folder / "training.json").read_text())
    assert record["heldout"]["codebook_used"] >= 0.5 and record["heldout"]["mean_psnr"] >= 21
    assert all(command.startswith("python tokenization/train_vq.py ") for command in record["commands"])
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text()
