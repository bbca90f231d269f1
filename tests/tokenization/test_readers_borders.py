"""Layouts as people have them: files of one name, and tars of other tools. No picture is lost without a word."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pretrain.system.errors import UserError
from tests.tokenization.corpora import Command, folder_corpus, jsonl, picture, tar
from tests.tokenization.test_readers import items, numbered, pictures, scans
from tokenization.readers import Document, Reject, open_corpus
from tokenization.shards import open_dataset


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def outcomes(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Texts by id, and reasons by file."""
    found = items(open_corpus(path))
    return (
        {item.id: item.texts for item in found if isinstance(item, Document)},
        {item.file: item.reason for item in found if isinstance(item, Reject)},
    )


def test_a_folder_of_pictures_and_texts_of_one_name(tmp_path: Path):
    folder = write(
        tmp_path / "photos",
        {
            "a.png": picture(0),
            "a.txt": b"\xef\xbb\xbfa cat\n",
            "b.JPG": picture(1),
            "b.caption": "a dog",
            "deep/er/c.webp": picture(2),
            "deep/er/c.json": '{"caption": "a bird", "id": "bird", "width": 3}',
            "v1.5_0.png": picture(3),
            "v1.5_0.txt": "dotted",
            "v1.5_1.png": picture(4),
            "v1.5_1.txt": "dotted too",
            "d.png": picture(5),
            "d.txt": "one",
            "d.json": '{"captions": ["two", "one"]}',
            "e.png": picture(6),
            "e.jpg": picture(7),
            "e.txt": "both are read",
            "lone.png": picture(8),
            "text.txt": "no picture",
            "f.png": picture(9),
            "f.txt": " ",
            "._a.png": b"fork",
            ".DS_Store": b"x",
            "__MACOSX/a.png": b"fork",
            "table.csv": "x",
            "README.md": "# x",
        },
    )
    texts, rejects = outcomes(folder)
    assert texts == {
        "a.png": ("a cat",),
        "b.JPG": ("a dog",),
        "bird": ("a bird",),
        "v1.5_0.png": ("dotted",),
        "v1.5_1.png": ("dotted too",),
        "d.png": ("two", "one"),
        "e.png": ("both are read",),
        "e.jpg": ("both are read",),
    }
    assert rejects == {"lone.png": "missing_key", "text.txt": "missing_key", "f.png": "empty_caption"}
    corpus = open_corpus(folder)
    assert "pictures and texts of one name, pictures with captions, 20 files" in corpus.describe()
    assert corpus.warning() == f"{folder}: not used: 1 .csv"
    assert scans(corpus)[0][0] == 11 and numbered(corpus, 4) == numbered(corpus)[4:]
    (document,) = (item for item in items(corpus) if item.id == "bird")
    assert pictures(document) == [picture(2)]


def test_the_commonest_layout_of_all_makes_shards(command: Command, tmp_path: Path):
    files = {f"{number}.png": picture(number) for number in range(6)} | {f"{n}.txt": f"picture {n}" for n in range(6)}
    code, stderr = command([write(tmp_path / "in", files)], tmp_path / "out")
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert code == 0 and (counts["documents"], counts["pictures"]) == (6, 6), stderr


def test_units_of_many_pictures_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenization.readers.pairs.RECORDS_AT_ONCE", 3)
    files = {f"{number:02d}.png": picture(0) for number in range(8)} | {f"{n:02d}.txt": "x" for n in range(8)}
    corpus = open_corpus(write(tmp_path / "in", files))
    assert [file.name for file in corpus.files] == ["00.png", "03.png", "06.png"]
    assert [item.id for item in items(corpus)] == [f"{number:02d}.png" for number in range(8)]


@pytest.mark.parametrize("layout", ["text", "jsonl", "tar", "list"])
def test_pictures_beside_what_is_read_are_counted(tmp_path: Path, layout: str):
    folder = write(tmp_path / "in", {"more/x.png": picture(0), "more/y.jpg": picture(1)})
    if layout == "text":
        write(folder, {"news.txt": "news"})
    elif layout == "tar":
        tar(folder / "a.tar", [("a.png", picture(0)), ("a.txt", b"a")])
    elif layout == "jsonl":
        jsonl(folder / "captions.jsonl", [{"image": "./more/x.png", "caption": "x"}])
    else:
        write(folder, {"list.json": '[{"image": "more/y.jpg", "caption": "y"}]'})
    used = {"jsonl": "1 .jpg", "list": "1 .png"}.get(layout, "1 .png, 1 .jpg")
    assert f"not used: {used} (a picture is used if" in open_corpus(folder).warning().replace(
        "1 .jpg, 1 .png", "1 .png, 1 .jpg"
    )


def test_pictures_of_records_lie_where_one_says(tmp_path: Path):
    root = write(tmp_path / "coco", {"train/1.png": picture(1)})
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    path = jsonl(tmp_path / "llava/chat.jsonl", [{"image": "train/1.png", "conversations": turns}])
    (document,) = items(open_corpus(path, image_root=str(root)))
    assert pictures(document) == [picture(1)]
    with pytest.raises(UserError, match="--image-root .*nowhere: no such folder"):
        open_corpus(path, image_root=str(tmp_path / "nowhere"))


def test_a_folder_of_nothing_but_pictures_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="2 pictures lie below it, and none has a text of its name"):
        open_corpus(write(tmp_path / "in", {"a.png": picture(0), "b/c.png": picture(1)}))


def test_names_with_dots_in_a_tar_are_samples_of_their_own(tmp_path: Path):
    members = [
        (f"v1.5_{n:04d}.{suffix}", picture(n) if suffix == "png" else b"x%d" % n)
        for n in range(50)
        for suffix in ("png", "txt")
    ]
    texts, rejects = outcomes(tar(tmp_path / "a.tar", members))
    assert texts == {f"a/v1.5_{n:04d}": (f"x{n}",) for n in range(50)} and not rejects
    members[1:2] = []  # one without its text
    texts, rejects = outcomes(tar(tmp_path / "a.tar", members))
    assert len(texts) == 49 and rejects == {"a.tar/v1.5_0000": "several_pictures"}


def test_members_that_are_sorted_by_suffix_are_joined(tmp_path: Path):
    pairs = [
        ("a.jpg", picture(0)),
        ("b.jpg", picture(1)),
        ("c.jpg", picture(2)),
        ("a.txt", b"A"),
        ("b.json", b'{"caption": "B"}'),
    ]
    assert outcomes(tar(tmp_path / "t.tar", pairs)) == ({"t/a": ("A",), "t/b": ("B",)}, {"t.tar/c": "missing_key"})
    twice = [
        ("a.jpg", picture(0)),
        ("a.txt", b"A"),
        ("b.jpg", picture(1)),
        ("b.txt", b"B"),
        ("a.jpg", picture(2)),
        ("a.txt", b"C"),
    ]
    assert [item.texts for item in items(open_corpus(tar(tmp_path / "u.tar", twice)))] == [("A",), ("B",), ("C",)]
    one = [("a.image.jpg", picture(0)), ("a.txt", b"A")]
    assert outcomes(tar(tmp_path / "v.tar", one)) == ({"v/a": ("A",)}, {})


def test_what_a_mac_puts_into_a_tar_is_passed_over(tmp_path: Path):
    members = [
        ("._a.png", b"fork"),
        ("a.png", picture(0)),
        ("._a.txt", b"fork"),
        ("a.txt", b"A"),
        (".DS_Store", b"x"),
        ("__MACOSX/a.png", b""),
    ]
    assert outcomes(tar(tmp_path / "t.tar", members)) == ({"t/a": ("A",)}, {})


def test_hard_links_lead_to_what_they_link_and_no_further(tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, data in (("a.png", picture(0)), ("a.txt", b"A")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (("b.png", "a.png"), ("b.txt", "a.txt"), ("c.png", "/etc/passwd"), ("c.txt", "a.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    found = items(open_corpus(tmp_path / "t.tar"))
    assert [pictures(item) for item in found[:2]] == [[picture(0)]] * 2 and found[1].texts == ("A",)
    assert found[2].reason == "unsafe_path"


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_members_have_their_holes(tmp_path: Path, format: str):
    data = picture(0)
    with open(tmp_path / "a.png", "wb") as file:  # a PNG may be followed by zeros; here with a hole of 1 MB
        file.write(data)
        file.truncate(1 << 20)
    (tmp_path / "a.txt").write_text("A")
    subprocess.run(
        ["tar", f"--format={format}", "--sparse", "-cf", "t.tar", "a.png", "a.txt"], cwd=tmp_path, check=True
    )
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert os.path.getsize(tmp_path / "t.tar") < 1 << 20 and archive.getmembers()[0].issparse()
    (document,) = items(open_corpus(tmp_path / "t.tar"))
    assert pictures(document) == [data + bytes((1 << 20) - len(data))] and document.texts == ("A",)


def test_every_found_picture_is_read_or_rejected(tmp_path: Path):
    """Over each layout of the same 23 pictures, some of them without a text, some with a broken one."""
    files = {f"d{n % 3}/p.{n}.png": picture(n) for n in range(23)}
    files |= {f"d{n % 3}/p.{n}.txt": b"\xff" if n == 7 else b"text" for n in range(20)}
    folder = write(tmp_path / "in", files)
    by_suffix = sorted(files.items(), key=lambda item: (item[0][-3:], item[0]))
    layouts = [folder, tar(tmp_path / "a.tar", sorted(files.items())), tar(tmp_path / "b.tar", by_suffix)]
    for path in layouts:
        found = items(open_corpus(path))
        assert sum(isinstance(item, Document) for item in found) == 19 and len(found) == 23, path


def test_a_folder_with_records_is_read_by_them(tmp_path: Path):
    folder = folder_corpus(tmp_path / "in", 3)
    write(folder, {"images/000.txt": "beside"})
    assert "JSON lines" in open_corpus(folder).describe() and len(items(open_corpus(folder))) == 3


def parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_pictures_of_parquet_by_path(tmp_path: Path):
    write(tmp_path, {"images/a.png": picture(1)})
    names = ["images/a.png", str(tmp_path / "images/a.png"), "/etc/passwd", "../a.png", None]
    rows = [None if name is None else {"bytes": None, "path": name} for name in names]
    for image in (rows, names):
        found = items(open_corpus(parquet(tmp_path / "a.parquet", image=image, caption=["x"] * 5)))
        assert [pictures(item) for item in found[:2]] == [[picture(1)]] * 2
        assert [item.reason for item in found[2:]] == ["unsafe_path", "unsafe_path", "missing_key"]
        assert "pass --image-root, or save the dataset with its pictures" in found[2].detail
    found = items(
        open_corpus(
            parquet(tmp_path / "a.parquet", images=[["images/a.png"]], texts=[[{"user": "?", "assistant": "!"}]])
        )
    )
    assert pictures(found[0]) == [picture(1)]


def test_columns_of_json_are_decoded(tmp_path: Path):
    captions = pyarrow.array(['"a \\"quoted\\" cat"', '["one", "two"]', '{"a": 1}', "{", None], pyarrow.json_())
    path = parquet(tmp_path / "a.parquet", image=[picture(n) for n in range(5)], caption=captions)
    found = items(open_corpus(path))
    assert [item.texts for item in found[:2]] == [('a "quoted" cat',), ("one", "two")]
    assert [item.reason for item in found[2:]] == ["wrong_type", "invalid_json", "missing_key"]
    turns = pyarrow.array(
        ['[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'], pyarrow.json_()
    )
    (document,) = items(open_corpus(parquet(tmp_path / "b.parquet", messages=turns)))
    assert document.texts == ("Hi", "Ho")
    each = pyarrow.ListArray.from_arrays([0, 2], pyarrow.array(['"one"', '"two"'], pyarrow.json_()))
    (document,) = items(open_corpus(parquet(tmp_path / "c.parquet", image=[picture(0)], captions=each)))
    assert document.texts == ("one", "two")


def test_the_first_reasons_stand_in_the_terminal(command: Command, tmp_path: Path):
    names = [{"bytes": None, "path": f"/elsewhere/{n}.png"} for n in range(3)]
    path = parquet(tmp_path / "a.parquet", image=names, caption=["x"] * 3)
    code, stderr = command([path], tmp_path / "out")
    assert code == 1 and "rejected as unsafe_path: a.parquet:1: image: the row has no picture bytes" in stderr


def test_turns_of_one_role_on_end_are_not_glued_together(tmp_path: Path):
    said = [
        ("human", "One."),
        ("human", "Two."),
        ("gpt", "A."),
        ("gpt", "B."),
        ("human", "<image>"),
        ("human", "C?"),
        ("gpt", "D."),
    ]
    turns = [{"from": role, "value": text} for role, text in said]
    path = jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "conversations": turns}])
    (document,) = items(open_corpus(path))
    assert document.texts == ("One.", "\nTwo.", "A.", "\nB.", "C?", "D.")


def test_a_dataset_that_is_not_there_is_told_as_that(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")


def test_texts_that_carry_their_pictures_whole_name(tmp_path: Path):
    files = {"a.jpg": picture(0), "a.png": picture(1), "a.jpg.txt": "of the first", "a.txt": "of both"}
    files |= {"a.jpg.json": '{"caption": "more"}', "a.json": '{"caption": "one"}'}
    texts, rejects = outcomes(write(tmp_path / "in", {**files, "b.png.txt": "of none"}))
    assert texts == {"a.jpg": ("one", "more", "of both", "of the first"), "a.png": ("one", "of both")}
    assert rejects == {"b.png.txt": "missing_key"}
    members = [("a.jpg", picture(0)), ("a.jpg.json", b'{"caption": "A"}'), ("a.jpg.txt", b"B"), ("a.txt", b"C")]
    assert outcomes(tar(tmp_path / "t.tar", members)) == ({"t/a": ("A", "C", "B")}, {})


def test_formats_that_are_not_read_are_lost_pictures_beside_their_texts(tmp_path: Path):
    """And no texts to train on as they are. Where another format of the same picture lies beside, that is read."""
    files = {"a.heic": b"x", "a.txt": "a cat", "b.SVG": b"<svg/>", "b.caption": "a dog"}
    texts, rejects = outcomes(write(tmp_path / "phone", files))
    assert texts == {} and rejects == {"a.heic": "not_a_picture", "b.SVG": "not_a_picture"}
    folder = write(tmp_path / "both", {**files, "a.png": picture(0)})
    assert outcomes(folder) == ({"a.png": ("a cat",)}, {"b.SVG": "not_a_picture"})
    assert open_corpus(folder).warning() == f"{folder}: not used: 1 .heic"
    members = [(name, b"x") for name in files]
    found = items(open_corpus(tar(tmp_path / "t.tar", [*members, ("c.txt", b"C")])))
    assert [item.reason for item in found] == ["not_a_picture", "not_a_picture", "missing_key"]
    assert found[0].detail == "of a.heic, a.txt, .heic is not read: save it as JPEG, PNG or WebP"
    with pytest.raises(UserError, match="2 .gz, which are not read"):
        open_corpus(write(tmp_path / "packed", {"a.tar.gz": b"x", "b.tar.gz": b"x"}))


@pytest.mark.parametrize("form", ["jsonl", "list", "parquet"])
@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({"image": "a.png", "caption": "a", "text": "b", "ocr": "c", "url": "d"}, ["text", "ocr"]),
        ({"text": "a", "meta": "b", "none": None}, ["meta"]),
        ({"system": "be kind", "messages": [{"role": "user", "content": "a"}], "id": "1"}, ["system"]),
        (
            {"conversations": [{"from": "human", "value": "a", "weight": 0.0}], "videos": ["b"]},
            ["videos", "weight of turns"],
        ),
        ({"image_list": ["a.png"], "instruction_list": ["a"], "output": "b"}, ["output"]),
        ({"image_list": ["a.png"], "instruction_list": ["a"], "id": "b"}, []),
    ],
)
def test_keys_that_are_not_read_are_told(tmp_path: Path, form: str, record: dict, unread: list[str]):
    if form == "parquet":
        path = tmp_path / "in.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
        unread = [*unread, "none"] if "none" in record else unread  # a schema does not say which rows are null
    elif form == "list":
        path = tmp_path / "in.json"
        path.write_text(json.dumps([record]))
    else:
        path = jsonl(tmp_path / "in.jsonl", [record])
    told = open_corpus(path).warning()
    if not unread:
        assert told is None
    else:
        keys = told.removeprefix(f"{path}: keys that are not read: ").removesuffix(" (docs/data.md has those that are)")
        assert sorted(keys.split(", ")) == sorted(unread)


def test_a_part_with_an_image_and_a_text_loses_neither(tmp_path: Path):
    path = jsonl(
        tmp_path / "a.jsonl", [{"parts": [{"text": "a", "image": "b.png"}]}, {"parts": []}, {"parts": [{"text": "c"}]}]
    )
    found = items(open_corpus(path))
    assert [getattr(item, "detail", item.id) for item in found[:2]] == [
        "parts[0]: has an image and a text: write a part for each",
        "parts: expected a list of parts, found none",
    ]
    assert found[2].texts == ("c",)


def test_addresses_of_pictures_are_told_as_that(tmp_path: Path):
    names = ["https://example.org/a.png", "data:image/png;base64,aGVsbG8="]
    path = jsonl(tmp_path / "a.jsonl", [{"image": name, "caption": "x"} for name in names])
    for item in items(open_corpus(path)):
        assert item.reason == "unsafe_path" and "is a URL, and pictures are not fetched" in item.detail
