"""What of a folder is read: linked and unreadable folders, files of one dataset among others, and places of pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pretrain.system.errors import UserError
from tests.tokenization.corpora import jsonl, picture, tar
from tests.tokenization.test_readers import items, pictures
from tests.tokenization.test_readers_borders import outcomes, write
from tokenization import storage
from tokenization.readers import open_corpora, open_corpus

PAIR = {"a.png": picture(0), "a.txt": "A"}


def test_linked_folders_are_read_once_and_never_round_and_round(tmp_path: Path):
    far = write(tmp_path / "far", {"x.png": picture(1), "x.txt": "X", "deep/y.png": picture(2), "deep/y.txt": "Y"})
    folder = write(tmp_path / "in/here", {**PAIR, "own/b.png": picture(3), "own/b.txt": "B"})
    links = {
        "more": far,
        "again": far,
        "again-deep": far / "deep",
        "after": far / "deep",
        "self": ".",
        "up": "..",
        "a-first": "own",
        "lost": "no",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (far / "back").symlink_to(folder)
    texts, rejects = outcomes(folder)
    assert sorted(texts.values()) == [("A",), ("B",), ("X",), ("Y",)] and not rejects
    assert set(texts) == {"a.png", "own/b.png", "after/y.png", "again/x.png"}
    (tmp_path / "whole").symlink_to(folder)
    assert outcomes(tmp_path / "whole")[0] == texts


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "in", {**PAIR, "closed/b.png": picture(1), ".closed/c.png": picture(1)})
    scandir = os.scandir

    def closed(path):
        if Path(path).name.endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="in/closed: cannot be read: Permission denied"):
        open_corpus(folder)
    (folder / "closed").rename(folder / ".also-closed")  # hidden ones are not read anyway
    assert [entry.name for entry in storage.files_below(str(folder))] == ["a.png", "a.txt"]


def arrow(path: Path, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def test_caches_beside_a_saved_dataset_are_not_read(tmp_path: Path):
    for name, text in (("data-00000-of-00002", "a"), ("data-00001-of-00002", "b"), ("cache-0123", "a")):
        arrow(tmp_path / f"{name}.arrow", text=[text])
    arrow(tmp_path / "cache-4567.arrow", indices=[0])
    names = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in range(2)]
    write(tmp_path, {"state.json": json.dumps({"_data_files": names}), "dataset_info.json": "{}"})
    corpus = open_corpus(tmp_path)
    assert [item.texts for item in items(corpus)] == [("a",), ("b",)]
    assert corpus.warning() == f"{tmp_path}: not used: 2 .arrow"
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="1 of the 2 files that its state.json names are not there, as data-00001-of-"):
        open_corpus(tmp_path)


def test_splits_and_missing_files_of_a_dataset_are_told(tmp_path: Path):
    arrow(tmp_path / "saved/train/data-00000-of-00001.arrow", text=["a"])
    write(tmp_path / "saved", {"dataset_dict.json": '{"splits": ["train"]}'})
    with pytest.raises(
        UserError, match="dataset of several splits: name the ones to use, as --input train=.*/saved/train"
    ):
        open_corpus(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    for name in ("test-00000-of-00001", "train-00000-of-00003", "train-00002-of-00003"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), tmp_path / f"hub/{name}.parquet")
    corpus = open_corpus(tmp_path / "hub")
    assert len(items(corpus)) == 3
    assert corpus.warning() == (
        f"{tmp_path}/hub: not there: 1 of the 3 files train-*-of-00003.parquet; the splits train and test are read as one: name "
        "the files to use if that is not meant"
    )
    assert open_corpus(tmp_path / "hub/train-00000-of-00003.parquet").warning() is None


def test_shards_are_no_corpus(tmp_path: Path):
    write(tmp_path, {"job.json": "{}", "rejects.jsonl": "", "files/0.json": "{}", "parts/0/index.json": "{}"})
    with pytest.raises(UserError, match="is a dataset that shard_images.py made, not a corpus"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("layout", ["tars", "folders"])
def test_what_img2dataset_wrote_is_read_whole(tmp_path: Path, layout: str):
    members = [("000000000.jpg", picture(0)), ("000000000.txt", b"A"), ("000000000.json", b'{"caption": "A"}')]
    for part in ("00000", "00001"):
        if layout == "tars":
            tar(tmp_path / f"{part}.tar", members)
        else:
            write(tmp_path / part, dict(members))
        write(tmp_path, {f"{part}_stats.json": '{"count": 1}', f"{part}.parquet": "PAR1"})
    corpus = open_corpus(tmp_path)
    assert [item.texts for item in items(corpus)] == [("A",)] * 2 and corpus.warning() is None
    write(tmp_path, {"other.parquet": "PAR1"})
    if layout == "tars":
        with pytest.raises(UserError, match=".parquet and .tar files; name the ones to use"):
            open_corpus(tmp_path)


def test_the_place_of_named_pictures_is_not_that_of_others(tmp_path: Path):
    pairs = write(tmp_path / "pairs", PAIR)
    elsewhere = write(tmp_path / "elsewhere", {"a.png": picture(9)})
    named = jsonl(tmp_path / "named.jsonl", [{"image": "a.png", "caption": "B"}])
    found = [items(corpus)[0] for corpus in open_corpora([str(pairs), str(named)], str(elsewhere))]
    assert [pictures(document) for document in found] == [[picture(0)], [picture(9)]]
    with pytest.raises(UserError, match="no input names pictures, they are in its files: leave it out"):
        open_corpora([str(pairs)], str(elsewhere))
    with pytest.raises(UserError, match="named.jsonl: no such folder"):
        open_corpora([str(named)], str(named))


def test_an_input_that_is_given_twice_is_refused(tmp_path: Path):
    pairs = write(tmp_path / "pairs", PAIR)
    (tmp_path / "link").symlink_to(pairs)
    for other in (f"{pairs}/", f"b={pairs}", f"b={tmp_path}/link"):
        with pytest.raises(UserError, match="is given twice, .*: give it once"):
            open_corpora([str(pairs), other])
