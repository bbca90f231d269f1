"""Datasets of pictures in several shapes: the right grid and codes of each, said in layout, index and manifest."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image

from model.shapes import Framing, framing_of, grids_from, nearest_shape
from tests.tokenization import kinds
from tests.tokenization.corpora import SHAPED_SIZES as SIZES
from tests.tokenization.corpora import Command, contents, error_line, shaped_corpus
from tests.tokenization.vq_folders import tiny_janus
from tokenization import shard_images
from tokenization.preprocess import preprocess
from tokenization.sample import PICTURE, SHAPE, parts_of
from tokenization.shards import open_dataset
from tokenization.vq import load_vq


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory, vq_folder: Path, tokenizer_folder: Path) -> Path:
    """`corpus`, and `out`, which was made of it with --shapes aspect."""
    folder = tmp_path_factory.mktemp("shaped")
    corpus = shaped_corpus(folder / "corpus")
    words = Command(vq_folder, tokenizer_folder).arguments(corpus, folder / "out", shapes="aspect", batch_size=2)
    assert shard_images.main(words) == 0
    return folder


def test_each_picture_has_the_codes_of_its_nearest_shape(shaped: Path, vq_folder: Path):
    dataset, vq = open_dataset(shaped / "out"), load_vq(vq_folder)
    framing = Framing(grids_from("aspect", 8), 2)
    assert framing_of(dataset.manifest["vq"]) == framing and dataset.manifest["format_version"] == 3
    for number, found in enumerate(dataset):
        shape = nearest_shape(framing.grids, *SIZES[number])
        image = Image.open(shaped / f"corpus/images/{number:03d}.png")
        expected = vq.encode([preprocess(image, framing)])[0]
        assert expected.shape == framing.grids[shape] == tuple(found["grids"])
        assert np.array_equal(found["codes"].reshape(found["grids"]), expected)
        picture = next(part for part in parts_of(found) if part.codes is not None)
        assert (picture.grid, picture.shape) == (framing.grids[shape], shape)
    layout = dataset.lengths.layout
    shapes = (layout // SHAPE)[layout & PICTURE != 0]
    assert shapes.tolist() == [nearest_shape(framing.grids, *size) for size in SIZES] and len(set(shapes)) == 11
    assert not (layout // SHAPE)[layout & PICTURE == 0].any()


@pytest.mark.parametrize("workers, batch_size", [(0, 32), (2, 3)])
def test_bytes_do_not_depend_on_how_shapes_are_batched(
    command: Command, shaped: Path, tmp_path: Path, workers: int, batch_size: int
):
    words = {"shapes": "aspect", "workers": workers, "batch_size": batch_size}
    assert command(shaped / "corpus", tmp_path / "a", **words)[0] == 0
    assert contents(tmp_path / "a") == contents(shaped / "out")


def test_square_datasets_are_those_of_before(command: Command, shaped: Path, tmp_path: Path):
    assert command(shaped / "corpus", tmp_path / "a")[0] == 0
    assert command(shaped / "corpus", tmp_path / "b", shapes="square", fit="crop")[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["format_version"] == 2 and "shapes" not in manifest["vq"] and "fit" not in manifest["vq"]
    assert not (open_dataset(tmp_path / "a").lengths.layout // SHAPE).any()


def test_a_job_goes_on_only_with_its_shapes_and_fit(command: Command, shaped: Path, tmp_path: Path):
    assert command(shaped / "corpus", tmp_path / "out", shapes="4:3,3:4", fit="pad")[0] == 0
    vq = open_dataset(tmp_path / "out").manifest["vq"]
    assert vq["shapes"] == [[8, 8], [7, 9], [9, 7]] and vq["fit"] == "pad"
    (tmp_path / "out/manifest.json").unlink()
    for options, message in (
        ({"shapes": "4:3", "fit": "pad"}, r"--shapes 8*8, 7*9, 9*7, and now it is 8*8, 7*9;"),
        ({"shapes": "square"}, r"--shapes 8*8, 7*9, 9*7, and now it is square"),
        ({"shapes": "4:3,3:4"}, "--fit pad, and now it is crop"),
    ):
        code, stderr = command(shaped / "corpus", tmp_path / "out", **options)
        assert code == 2 and message in error_line(stderr)
    assert command(shaped / "corpus", tmp_path / "out", shapes="4:3,3:4", fit="pad")[0] == 0


def test_equal_pixels_of_two_shapes_are_two_pictures(command: Command, tmp_path: Path):
    """An edit whose source is 9 x 7 and whose target is 7 x 9 of one colour: bytes alike, codes of their own grids."""
    files = [io.BytesIO(), io.BytesIO()]
    for size, file in zip([(36, 28), (28, 36)], files):
        Image.new("RGB", size, "navy").save(file, "PNG")
    row = {"image_list": [file.getvalue() for file in files], "instruction_list": [["turn it"]]}
    table = pyarrow.Table.from_pylist([row])
    assert command(kinds.parquet(tmp_path / "edits.parquet", table), tmp_path / "out", shapes="4:3,3:4")[0] == 0
    assert open_dataset(tmp_path / "out")[0]["grids"].tolist() == [7, 9, 9, 7]


def test_what_cannot_be_is_refused_before_anything_is_read(command: Command, shaped: Path, tmp_path: Path):
    code, stderr = command(tmp_path / "missing", tmp_path / "out", shapes="round")
    assert code == 2 and "--shapes round: 'round' is no ratio" in error_line(stderr)


def test_an_image_tokenizer_of_one_grid_is_refused(command: Command, shaped: Path, tmp_path: Path):
    tiny_janus().save_pretrained(tmp_path / "janus")
    code, stderr = command(shaped / "corpus", tmp_path / "out", vq=tmp_path / "janus", shapes="4:3")
    assert code == 2 and "takes grids of" in error_line(stderr)
