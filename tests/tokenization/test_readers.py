"""Corpora in every layout become the same documents; what cannot is rejected with its place and reason."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.system.errors import UserError
from tests.tokenization.corpora import folder_corpus, jsonl, parquet_corpus, picture, tar, tar_corpus
from tokenization.pipeline import chunks_of
from tokenization.readers import Corpus, DamagedFile, Document, Reject, open_corpora, open_corpus
from tokenization.readers.document import BadRecord, captions_of, given_id, inside, parse_object, text_of


def numbered(corpus: Corpus, start: int = 0) -> list[tuple[int, Document | Reject]]:
    found = []
    for file in corpus.files:
        with corpus.open(file) as opened:
            found += corpus.read(opened, start)
    return found


def items(corpus: Corpus) -> list[Document | Reject]:
    return [item for _, item in numbered(corpus)]


def scans(corpus: Corpus) -> list[tuple[int, str]]:
    found = []
    for file in corpus.files:
        with corpus.open(file) as opened:
            found.append(corpus.scan(opened))
    return found


def pictures(document: Document) -> list[bytes]:
    data = [picture.data for picture in document.pictures]
    return [entry.read_bytes() if isinstance(entry, Path) else entry for entry in data]


def reasons(corpus: Corpus) -> list[str | None]:
    return [item.reason if isinstance(item, Reject) else None for item in items(corpus)]


def test_every_layout_gives_the_same_documents(tmp_path: Path):
    corpora = [
        open_corpus(folder_corpus(tmp_path / "folder", 10)),
        open_corpus(tar_corpus(tmp_path / "tars", 10, per_tar=4)),
        open_corpus(parquet_corpus(tmp_path / "bytes.parquet", 10, as_struct=False)),
        open_corpus(parquet_corpus(tmp_path / "struct.parquet", 10, as_struct=True)),
    ]
    expected = [(f"{seed:03d}", "caption_pair", [picture(seed)]) for seed in range(10)]
    texts = [document.texts for document in items(corpora[0])]
    for corpus in corpora:
        documents = items(corpus)
        assert [(item.id, item.kind, pictures(item)) for item in documents] == expected
        assert [item.texts for item in documents] == texts
        assert {item.source for item in documents} == {corpus.source}
        assert sum(records for records, _ in scans(corpus)) == 10
    assert [corpus.source for corpus in corpora] == ["folder", "tars", "bytes", "struct"]
    described = corpora[1].describe()
    assert re.search(r"WebDataset tar, pictures with captions, 3 files, [\d.]+ MB; source 'tars'", described)


@pytest.mark.parametrize("layout", ["folder", "tars", "parquet", "text"])
def test_reading_can_start_at_any_record(tmp_path: Path, layout: str):
    if layout == "folder":
        path = folder_corpus(tmp_path / "corpus", 10)
    elif layout == "tars":
        path = tar_corpus(tmp_path / "corpus", 10, per_tar=10)
    elif layout == "parquet":
        path = parquet_corpus(tmp_path / "corpus.parquet", 10, as_struct=True)
    else:
        path = jsonl(tmp_path / "text.jsonl", [{"text": f"line {number}"} for number in range(10)])
    corpus = open_corpus(path)
    whole = numbered(corpus)
    for start in range(11):
        assert numbered(corpus, start) == whole[start:]


@pytest.mark.parametrize(("first", "stop"), [(0, 3), (0, 1), (1, 2), (2, 3)])
def test_parts_are_read_whole_and_in_order_from_any(tmp_path: Path, first: int, stop: int):
    corpus = open_corpus(folder_corpus(tmp_path / "f", 9))
    read: dict[int, list[int]] = {}
    ended = []
    for chunk in chunks_of(iter(numbered(corpus, first * 4)), first, 4, stop, chunk_size=3):
        read.setdefault(chunk.part, []).extend(int(item.id) for item in chunk.items)
        ended += [chunk.part] * chunk.last
    ids = [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert read == {part: ids[part] for part in range(first, stop)}
    assert ended == list(range(first, stop))


def test_a_part_of_blank_lines_ends_too(tmp_path: Path):
    path = jsonl(tmp_path / "text.jsonl", [{"text": "x"}, b"", b" ", {"text": "y"}])
    chunks = list(chunks_of(iter(numbered(open_corpus(path))), 0, 1, 4))
    assert [(chunk.part, len(chunk.items), chunk.last) for chunk in chunks] == [
        (0, 1, True),
        (1, 0, True),
        (2, 0, True),
        (3, 1, True),
    ]


def test_users_minimal_lines_and_hugging_faces_names(tmp_path: Path):
    corpus = open_corpus(
        jsonl(
            tmp_path / "metadata.jsonl",
            [
                b'\xef\xbb\xbf{"image": "a.png", "caption": " a cat "}',
                {"file_name": "b.png", "text": "a dog"},
                b"",
                {"image": "sub/c.png", "captions": ["x", "y"], "id": 7},
            ],
        )
    )
    found = [(item.id, item.texts, item.pictures[0].data) for item in items(corpus)]
    assert found == [
        ("a.png", ("a cat",), tmp_path / "a.png"),
        ("b.png", ("a dog",), tmp_path / "b.png"),
        ("7", ("x", "y"), tmp_path / "sub/c.png"),
    ]


def test_plain_text(tmp_path: Path):
    lines = jsonl(tmp_path / "news.jsonl", [{"text": " one\n"}, {"text": "two", "id": "t2", "year": 2020}])
    pyarrow.parquet.write_table(pyarrow.table({"text": [" one\n", "two"], "year": [1, 2]}), tmp_path / "news.parquet")
    found = [(item.id, item.kind, item.texts, item.pictures) for item in items(open_corpus(lines))]
    assert found == [("news.jsonl:1", "text", (" one\n",), ()), ("t2", "text", ("two",), ())]
    assert [item.texts for item in items(open_corpus(tmp_path / "news.parquet"))] == [(" one\n",), ("two",)]


def test_bad_lines_are_rejected_one_by_one(tmp_path: Path):
    corpus = open_corpus(
        jsonl(
            tmp_path / "captions.jsonl",
            [
                {"image": "a.png", "caption": "fine"},
                {"caption": "no picture"},
                {"image": "b.png"},
                {"image": "c.png", "caption": "  "},
                {"image": "d.png", "captions": ["fine", ""]},
                {"image": "e.png", "captions": []},
                {"image": "f.png", "caption": 7},
                {"image": 7, "caption": "x"},
                {"image": "g.png", "caption": "x", "id": True},
                b'{"image": "h.png", "caption": "\xff"}',
                b'{"image": "i.png", "caption": "x"',
                b'["image", "caption"]',
                b'{"image": "j.png", "caption": "\\ud800"}',
                {"image": "../../etc/passwd", "caption": "x"},
                {"image": "/etc/passwd", "caption": "x"},
                {"image": "a\0b", "caption": "x"},
                b"[" * 100_000,
            ],
        )
    )
    assert reasons(corpus) == [
        None,
        "missing_key",
        "missing_key",
        "empty_caption",
        "empty_caption",
        "empty_caption",
        "wrong_type",
        "wrong_type",
        "wrong_type",
        "invalid_utf8",
        "invalid_json",
        "invalid_json",
        "invalid_utf8",
        "unsafe_path",
        "unsafe_path",
        "unsafe_path",
        "invalid_json",
    ]
    rejects = [item for item in items(corpus) if isinstance(item, Reject)]
    assert [reject.file for reject in rejects] == [f"captions.jsonl:{number}" for number in range(2, 18)]
    assert rejects[2].id == "c.png" and rejects[8].id == "captions.jsonl:10"


def test_webdataset_members(tmp_path: Path):
    data = picture(0)
    path = tar(
        tmp_path / "00001.tar",
        [
            ("a.jpg", data),
            ("a.txt", b"from txt\n"),
            ("a.cls", b"3"),
            ("b.PNG", data),
            ("b.json", b'{"caption": "from json"}'),
            ("b.txt", b"from txt too"),
            ("c.png", data),
            ("c.json", b'{"width": 3}'),
            ("c.txt", "aus txt \u00fc".encode()),
            ("sub/d.png", data),
            ("sub/d.txt", b"in a folder"),
            ("e.txt", b"no picture"),
            ("f.png", data),
            ("g.png", data),
            ("g.jpg", data),
            ("g.txt", b"two pictures"),
            ("../h.png", data),
            ("../h.txt", b"outside"),
            ("i.png", data),
            ("i.txt", b"\xff"),
            ("j.png", data),
            ("j.json", b"{"),
            ("k.seg.png", data),
            ("k.png", data),
            ("k.txt", b"k.seg.png is another extension"),
        ],
    )
    corpus = open_corpus(path)
    documents = [item for item in items(corpus) if isinstance(item, Document)]
    assert [(item.id, item.texts[0]) for item in documents] == [
        ("00001/a", "from txt"),
        ("00001/b", "from json"),
        ("00001/c", "aus txt ü"),
        ("00001/sub/d", "in a folder"),
        ("00001/k", "k.seg.png is another extension"),
    ]
    assert documents[1].texts == ("from json", "from txt too")
    assert {item.pictures[0].data for item in documents} == {data}
    bad = [(item.file, item.reason) for item in items(corpus) if isinstance(item, Reject)]
    assert bad == [
        ("00001.tar/e", "missing_key"),
        ("00001.tar/f", "missing_key"),
        ("00001.tar/g.png", "several_pictures"),
        ("00001.tar/g.jpg", "several_pictures"),
        ("00001.tar/../h", "unsafe_path"),
        ("00001.tar/i", "invalid_utf8"),
        ("00001.tar/j", "invalid_json"),
    ]


def test_a_link_in_a_tar_is_never_followed(tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        archive.addfile(link)
    assert reasons(open_corpus(tmp_path / "links.tar")) == ["unsafe_path"]


def test_a_cut_compressed_or_damaged_tar_cannot_be_scanned(tmp_path: Path):
    path = tar_corpus(tmp_path / "tars", 6, per_tar=6) / "00000.tar"
    sound = path.read_bytes()
    second = sound.index(b"001.png")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(path)
    broken = {
        "cut": sound[: second + 700],
        "header": sound[: second + 20] + b"\xff" * 8 + sound[second + 28 :],
        "compressed": (tmp_path / "packed.tar").read_bytes(),
        "text": b"a cat\n" * 300,
    }
    for data in broken.values():
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match="not a sound, uncompressed tar"):
            scans(open_corpus(path.parent))
        assert reasons(open_corpus(path.parent))[-1] == "damaged_file"
    members = len(sound.rstrip(b"\0"))
    path.write_bytes(sound[: members + -members % tarfile.BLOCKSIZE])  # no closing blocks, as some tools write
    assert scans(open_corpus(path))[0][0] == 6


def test_bad_rows_of_parquet(tmp_path: Path):
    strings = pyarrow.array([b"fine", b"\xff", None, b" ", b"x"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    images = [picture(0), picture(1), picture(2), picture(3), None]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "caption": strings}), tmp_path / "a.parquet")
    corpus = open_corpus(tmp_path / "a.parquet")
    assert reasons(corpus) == [None, "invalid_utf8", "missing_key", "empty_caption", "missing_key"]
    assert [item.file for item in items(corpus)] == [f"a.parquet:{number}" for number in range(1, 6)]


def test_the_fingerprint_of_a_file_changes_with_its_records(tmp_path: Path):
    paths = [
        folder_corpus(tmp_path / "folder", 4),
        tar_corpus(tmp_path / "tars", 4, per_tar=4),
        parquet_corpus(tmp_path / "a.parquet", 4, as_struct=True),
    ]
    before = [scans(open_corpus(path)) for path in paths]
    assert [scans(open_corpus(path)) for path in paths] == before
    folder_corpus(tmp_path / "new", 5)
    (tmp_path / "new/captions.jsonl").rename(tmp_path / "folder/captions.jsonl")
    tar(tmp_path / "tars/00000.tar", [("a.png", picture(0)), ("a.txt", b"x")])
    parquet_corpus(tmp_path / "a.parquet", 3, as_struct=True)
    for old, path in zip(before, paths, strict=True):
        assert scans(open_corpus(path))[0] != old[0]


def test_names_of_sources(tmp_path: Path):
    one, two = folder_corpus(tmp_path / "a/train", 2), folder_corpus(tmp_path / "b/train", 2)
    with pytest.raises(UserError, match="both called 'train'; name them"):
        open_corpora([str(one), str(two)])
    assert [corpus.source for corpus in open_corpora([f"a={one}", f"b={two}"])] == ["a", "b"]
    strange = folder_corpus(tmp_path / "x=y", 2)
    assert [corpus.source for corpus in open_corpora([str(strange)])] == ["x=y"]


def test_inputs_that_are_no_corpus(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(picture(0))
    (tmp_path / "a.csv").write_text("image,caption\n")
    (tmp_path / "empty.jsonl").write_text("")
    jsonl(tmp_path / "strange.jsonl", [{"url": "x", "alt": "y"}])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"url": ["x"], "alt": ["y"]}), tmp_path / "columns.parquet")
    jsonl(tmp_path / "mixed/a.jsonl", [{"text": "x"}])
    jsonl(tmp_path / "mixed/b.jsonl", [{"image": "a.png", "caption": "x"}])
    tar_corpus(tmp_path / "both", 2, per_tar=2)
    jsonl(tmp_path / "both/a.jsonl", [{"text": "x"}])
    cases = {
        "nowhere": "no such file or folder",
        "pictures": "captions of a picture folder stand in a captions.jsonl",
        "a.csv": "unknown format",
        "empty.jsonl": "nothing in empty.jsonl tells what it holds",
        "strange.jsonl": "nothing in strange.jsonl tells what it holds",
        "broken.parquet": "cannot be read as Parquet",
        "columns.parquet": "nothing in columns.parquet tells what it holds",
        "mixed": "a.jsonl holds text and b.jsonl holds caption_pair",
        "both": "it holds .jsonl and .tar files; name the ones to use",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=name) as error:
            open_corpus(tmp_path / name)
        assert message in str(error.value) and "\n" not in str(error.value)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_an_object_or_a_bad_record(data: bytes):
    try:
        assert isinstance(parse_object(data), dict)
    except BadRecord as bad:
        assert bad.reason in ("invalid_utf8", "invalid_json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["caption", "captions", "text", "id", "other"]), JSON))
def test_any_record_gives_texts_that_utf8_can_hold_or_a_bad_record(record: dict):
    for check in (captions_of, text_of, lambda record: given_id(record, "default")):
        try:
            result = check(record)
        except BadRecord:
            continue
        for text in result if isinstance(result, tuple) else [result]:
            assert isinstance(text, str) and text and json.loads(json.dumps(text)) == text
            text.encode("utf-8")


@settings(deadline=None)
@given(st.text(alphabet="ab./\0", max_size=12))
def test_a_name_inside_stays_inside(name: str):
    try:
        path = inside(name)
    except BadRecord as bad:
        assert bad.reason == "unsafe_path"
        return
    base = Path("/corpus")
    assert Path(*(base / path).parts).is_relative_to(base) and ".." not in path.parts
