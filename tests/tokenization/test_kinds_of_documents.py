"""Conversations, picture editing, documents in order and plain text: every layout, its parts and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pyarrow
import pytest

from pretrain.system.errors import UserError
from tests.tokenization import kinds
from tests.tokenization.corpora import Command, folder_corpus, jsonl, picture, tar_corpus
from tests.tokenization.test_readers import items, numbered, reasons
from tokenization.readers import Document, Reject, open_corpora, open_corpus
from tokenization.readers.document import Picture
from tokenization.shards import open_dataset


def spelt(document: Document, pictures: list[bytes]) -> list[str]:
    """Each part as ROLE:TEXT, with / between wordings, a picture as its number among `pictures`."""
    found = []
    for part in document.parts:
        if isinstance(part, Picture):
            data = part.data.read_bytes() if isinstance(part.data, Path) else part.data
            found.append(f"{part.role}:{pictures.index(data)}")
        else:
            found.append(f"{part.role}:{'/'.join(part.wordings)}")
    return found


PICTURES = [picture(number) for number in range(5)]
EDITS = [
    ["user:make it red/paint it red", "user:0", "assistant:1", "user:now blue", "assistant:2"],
    ["user:smaller", "user:3", "assistant:4"],
]
IN_ORDER = [[":Once", ":0", ":then", ":1"], [":2", ":3"]]
QUESTIONS = [
    ["user:0", "user:1", "user:Compare.", "assistant:Alike.", "user:Sure?", "assistant:Yes."],
    ["user:Hi", "assistant:Hello"],
]


@pytest.mark.parametrize("as_list", [True, False])
def test_llavas_conversations(tmp_path: Path, as_list: bool):
    corpus = open_corpus(kinds.llava(tmp_path / "llava", as_list))
    assert corpus.kind == "conversation" and "conversations, 1 file" in corpus.describe()
    assert {item.id: spelt(item, PICTURES) for item in items(corpus)} == kinds.LLAVA_PARTS
    assert [number for number, _ in numbered(corpus, 1)] == [1, 2]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    ("table", "kind", "expected"),
    [
        (kinds.finevision, "conversation", QUESTIONS),
        (kinds.bagel, "edit", EDITS),
        (kinds.in_order, "interleaved", IN_ORDER),
    ],
    ids=["finevision", "bagel", "in_order"],
)
def test_tables(tmp_path: Path, table, kind: str, expected: list[list[str]], saved: bool):
    path = kinds.saved_to_disk(tmp_path / "d", table()) if saved else kinds.parquet(tmp_path / "d.parquet", table())
    corpus = open_corpus(path)
    assert corpus.kind == kind and len(corpus.files) == (2 if saved else 1)
    assert [spelt(item, PICTURES) for item in items(corpus)] == expected


def test_a_saved_dataset_of_captions_can_be_read_from_any_record(tmp_path: Path):
    table = pyarrow.table({"image": [{"bytes": picture(n), "path": "x"} for n in range(5)], "text": list("abcde")})
    corpus = open_corpus(kinds.saved_to_disk(tmp_path / "saved", table))
    assert [item.texts for item in items(corpus)] == [(letter,) for letter in "abcde"]
    whole = numbered(corpus)
    assert numbered(corpus, 2) == [whole[2]] and corpus.format.name == "Arrow (datasets on disk)"


def test_json_lines_of_editing_and_of_parts_in_order(tmp_path: Path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    names = [f"{number}.png" for number in range(5)]
    edits = [
        {"image_list": names[:3], "instruction_list": [["make it red", "paint it red"], "now blue"]},
        {"image_list": names[3:], "instruction_list": ["smaller"]},
    ]
    parts = [
        {"parts": [{"text": "Once"}, {"image": "0.png"}, {"text": "then"}, {"image": "1.png"}]},
        {"parts": [{"image": "2.png"}, {"image": "3.png"}]},
    ]
    for name, records, expected in (("edits", edits, EDITS), ("parts", parts, IN_ORDER)):
        corpus = open_corpus(jsonl(tmp_path / f"{name}.jsonl", records))
        assert [spelt(item, PICTURES) for item in items(corpus)] == expected


def test_text_files(tmp_path: Path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n<|endoftext|>\n two\nlines\n<|endoftext|>\n")
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfthree")
    (folder / "c.txt").write_text(" \n")
    (folder / "d.txt").write_bytes(b"caf\xe9")
    corpus = open_corpus(folder)
    found = [(item.id, item.texts[0] if isinstance(item, Document) else item.reason) for item in items(corpus)]
    assert found == [
        ("a.txt:1", "one\n"),
        ("a.txt:2", " two\nlines\n"),
        ("b.txt:1", "three"),
        ("c.txt:1", "empty_text"),
        ("d.txt:1", "invalid_utf8"),
    ]
    assert len(corpus.files) == 1 and "plain text, 4 files" in corpus.describe()
    assert [number for number, _ in numbered(corpus, 3)] == [3, 4]


def test_what_turns_must_have(tmp_path: Path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    bad = {
        "wrong_type": {"conversations": "a"},
        "unknown_role": {"conversations": [{"from": "cat", "value": "a"}]},
        "empty_text": {"conversations": [*turns, {"from": "human", "value": " "}]},
        "no_answer": {"conversations": turns[:1]},
        "no_question": {"conversations": [{"from": "system", "value": "s"}, *turns[::-1]]},
        "picture_count": {"image": ["a", "b"], "conversations": [{"from": "human", "value": "<image>"}, turns[1]]},
        "unsafe_path": {"image": "../a", "conversations": turns},
        "invalid_utf8": b'{"conversations": [{"from": "human", "value": "\\ud800"}]}',
    }
    corpus = open_corpus(jsonl(tmp_path / "bad.jsonl", [{"conversations": turns}, *bad.values()]))
    assert reasons(corpus) == [None, *bad]
    rows = pyarrow.table(
        {
            "image_list": [[picture(0)], [picture(0), None], [picture(0), picture(1)]],
            "instruction_list": [[["x"]], [["x"]], [[""]]],
        }
    )
    corpus = open_corpus(kinds.parquet(tmp_path / "bad.parquet", rows))
    assert reasons(corpus) == ["picture_count", "missing_key", "empty_text"]
    rows = pyarrow.table({"images": [[picture(0), None]], "texts": [[None]]})
    assert reasons(open_corpus(kinds.parquet(tmp_path / "unequal.parquet", rows))) == ["picture_count"]


@pytest.mark.parametrize("end", ["", "]]", ", {", ', {"text": ', "x"])
def test_a_json_list_that_breaks_off_gives_what_was_before(tmp_path: Path, end: str):
    path = tmp_path / "texts.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}' + end)
    found = reasons(open_corpus(path))
    assert found == [None, None, "invalid_json"]
    corpus = open_corpus(path)
    with corpus.open(corpus.files[0]) as opened:
        assert corpus.scan(opened)[0] == len(found)


def test_a_damaged_table_is_a_reject_where_it_is_damaged(tmp_path: Path):
    texts = pyarrow.table({"text": [f"text {number} {'x' * 200}" for number in range(200)]})
    path = kinds.parquet(tmp_path / "a.parquet", texts)
    data = bytearray(path.read_bytes())
    place = data.index(b"text 150")
    data[place - 40 : place] = b"\xff" * 40
    path.write_bytes(data)
    found = items(open_corpus(path))
    assert 148 < len(found) <= 151
    assert [item.texts[0].split()[1] for item in found[:-1]] == [str(number) for number in range(len(found) - 1)]
    assert isinstance(found[-1], Reject) and found[-1].reason == "damaged_file"


@pytest.mark.parametrize("layout", ["folder", "tars", "json", "text"])
def test_a_corpus_on_object_storage_is_the_same(command: Command, tmp_path: Path, layout: str):
    """fsspec's memory:// stands for s3:// and the like; the shards are those of the same files on a local disk."""
    folder = tmp_path / "corpus"
    if layout == "folder":
        folder_corpus(folder, 6)
    elif layout == "tars":
        tar_corpus(folder, 6, per_tar=2)
    elif layout == "json":
        kinds.llava(folder, as_list=True)
    else:
        folder.mkdir()
        (folder / "a.txt").write_text("one\n<|endoftext|>\ntwo")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/bucket-{layout}/corpus", recursive=True)
    assert command(folder, tmp_path / "local", workers=2)[0] == 0
    shutil.rmtree(folder)
    assert command(f"memory://bucket-{layout}/corpus", tmp_path / "remote", workers=2)[0] == 0
    local, remote = open_dataset(tmp_path / "local"), open_dataset(tmp_path / "remote")
    assert len(local) > 1 and local.fingerprint == remote.fingerprint


def test_urls_that_cannot_be_read_are_one_line():
    with pytest.raises(UserError, match="no such file or folder"):
        open_corpus("memory://nowhere/corpus")
    with pytest.raises(UserError, match="nosuch://bucket: cannot be opened: .*install what fsspec needs"):
        open_corpus("nosuch://bucket")
    fsspec.filesystem("memory").pipe("/one/a=b.txt", b"x")
    assert [corpus.source for corpus in open_corpora(["memory://one/a=b.txt"])] == ["a=b"]
    assert [corpus.source for corpus in open_corpora(["name=memory://one/a=b.txt"])] == ["name"]


def test_a_record_names_the_kinds_that_there_are(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({"text": "not a list"}))
    with pytest.raises(UserError, match="x.json tells what it holds"):
        open_corpus(tmp_path / "x.json")


def test_a_damaged_arrow_file_is_a_reject_and_no_crash(tmp_path: Path):
    """Arrow follows offsets wherever they point, unless a batch is validated before it is used."""
    folder = kinds.saved_to_disk(tmp_path / "d", kinds.finevision())
    path = folder / "data-00000-of-00002.arrow"
    data = bytearray(path.read_bytes())
    offsets = (0).to_bytes(4, "little") + len(b"Compare.").to_bytes(4, "little")
    place = data.index(offsets)
    data[place + 4 : place + 8] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    found = items(open_corpus(folder))
    assert isinstance(found[0], Reject) and found[0].reason == "damaged_file"
    assert isinstance(found[1], Document) and found[1].texts == ("Hi", "Hello")


def test_a_picture_that_edits_share_is_encoded_once(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every row has the codes of its own pictures in order, as if each had been encoded for itself."""
    from tokenization.vq_base import VQ

    drawn = [[0, 1], [0, 2], [2, 0], [0, 1, 0], [3, 4]]
    rows = pyarrow.table(
        {
            "image_list": [[picture(seed) for seed in seeds] for seeds in drawn],
            "instruction_list": [["edit"] * (len(seeds) - 1) for seeds in drawn],
        }
    )
    encoded = []
    encode = VQ.encode_pixels
    monkeypatch.setattr(VQ, "encode_pixels", lambda vq, pixels: encoded.append(len(pixels)) or encode(vq, pixels))
    code, said = command(kinds.parquet(tmp_path / "edits.parquet", rows), tmp_path / "shards", batch_size=2)
    assert code == 0, said
    assert sum(encoded) == 5 and max(encoded) == 2
    codes = [document["codes"].reshape(-1, 64) for document in open_dataset(tmp_path / "shards")]
    of_seed = {seed: grid for grids, seeds in zip(codes, drawn) for grid, seed in zip(grids, seeds)}
    assert [len(grids) for grids in codes] == [len(seeds) for seeds in drawn]
    assert all((of_seed[seed] == grid).all() for grids, seeds in zip(codes, drawn) for grid, seed in zip(grids, seeds))
    assert len({grid.tobytes() for grid in of_seed.values()}) == 5
