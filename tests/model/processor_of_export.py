"""A tiny export with marks of turns, its processor, and pictures: for the tests of the processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.tiny_export import CHATML, SIDE, write_export


def _kept_code() -> list[str]:
    """The modules of exports' code that this process has imported."""
    return [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]


@contextmanager
def modules_apart(modules: str) -> Iterator[None]:
    """What transformers keeps of exports' code is apart from that of other tests, on both sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        for name in _kept_code():
            patch.delitem(sys.modules, name)  # of another cache, by a test that ran before in this process
        yield
        for name in _kept_code():
            del sys.modules[name]  # a package kept would look for the files of later exports in this cache


@contextmanager
def export_folder(tmp_path_factory) -> Iterator[Path]:
    with modules_apart(str(tmp_path_factory.mktemp("modules"))):
        yield write_export(tmp_path_factory.mktemp("processor") / "export", added=CHATML, max_position_embeddings=512)


def two_pictures() -> list[Image.Image]:
    """Of another size than the model's, with transparency."""
    drawn = [np.random.default_rng(n).integers(0, 256, (20 + n, 16, 4), dtype=np.uint8) for n in range(2)]
    return [Image.fromarray(array) for array in drawn]


def codes_of(opened, images) -> np.ndarray:
    from tokenization.preprocess import preprocess

    return opened.vq.encode([preprocess(image, SIDE) for image in images]).reshape(len(images), -1)


def user_says(text: str) -> dict:
    return {"role": "user", "content": text}


def rows_of(batch) -> list[list[int]]:
    """The ids of each row, without its padding."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [torch.as_tensor(ids)[torch.as_tensor(mask).bool()].tolist() for ids, mask in pairs]
