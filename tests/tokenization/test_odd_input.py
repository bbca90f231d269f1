"""Every class of odd input: what docs/data.md says of it is what happens, and it names every reason that there is."""

from __future__ import annotations

import ast
import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import ROOT
from tests.tokenization.corpora import jsonl, picture, tar
from tests.tokenization.test_readers_borders import outcomes, write
from tokenization.filters import Filters
from tokenization.pipeline import Preparation
from tokenization.readers import Reject, open_corpus

PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
RAISE = ("BadRecord", "RejectedImage", "Reject")


def reasons_in_the_code() -> set[str]:
    """The words that stand for a reason where a rejection is made."""
    found = set()
    for path in (ROOT / "tokenization").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in RAISE:
                place = 3 if node.func.id == "Reject" else 0
                if (
                    len(node.args) > place
                    and isinstance(word := node.args[place], ast.Constant)
                    and isinstance(word.value, str)
                ):
                    found.add(word.value)
            elif (
                isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(first := node.elts[0], ast.Constant)
            ):
                if first.value in ("missing_key", "several_pictures"):
                    found.add(first.value)
    return found


def test_the_page_names_every_reason():
    reasons = reasons_in_the_code()
    assert len(reasons) > 20 and {"damaged_file", "several_pictures", "too_slow"} <= reasons
    assert not [reason for reason in reasons if f"`{reason}`" not in PAGE]
    odd = PAGE[PAGE.index("### Odd input") : PAGE.index("What cannot be used is put aside")]
    named = set(re.findall(r"`([a-z]+_[a-z0-9_]+)`", odd)) - {"to_parquet", "first_frames"}
    assert named <= reasons | {"duplicate_picture"}


def encoded(mode: str, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def prepared(path: Path) -> dict[str, str]:
    """What becomes of each record when its pictures are decoded, by its file."""
    corpus, preparation, found = open_corpus(path), Preparation(None, 32, Filters()), {}
    for file in corpus.files:
        with corpus.open(file) as opened:
            for _, item in corpus.read(opened, 0):
                made = preparation.decode(item)[0]
                found[item.file.rpartition("/")[2]] = made.reason if isinstance(made, Reject) else "read"
    return found


def test_pictures_of_many_kinds(tmp_path: Path):
    image = Image.open(io.BytesIO(picture(1)))
    kinds = {
        "cmyk": (encoded("CMYK", "JPEG"), "read"),
        "palette": (encoded("P", "PNG"), "read"),
        "grey": (encoded("L", "BMP"), "read"),
        "bit": (encoded("1", "PNG"), "read"),
        "deep": (encoded("I;16", "PNG"), "read"),
        "alpha": (encoded("LA", "PNG"), "read"),
        "pages": (encoded("RGB", "TIFF", save_all=True, append_images=[image]), "read"),
        "moving": (encoded("RGB", "GIF", save_all=True, append_images=[image]), "read"),
        "float": (encoded("F", "TIFF"), "undecodable_picture"),
        "cut": (picture(1)[:200], "undecodable_picture"),
        "icon": (encoded("RGB", "ICO"), "not_a_picture"),
        "empty": (b"", "not_a_picture"),
        "svg": (b"<svg/>", "not_a_picture"),
    }
    files = {f"{name}.png": data for name, (data, _) in kinds.items()} | {f"{name}.txt": name for name in kinds}
    assert prepared(write(tmp_path / "in", files)) == {f"{name}.png": outcome for name, (_, outcome) in kinds.items()}


def test_folders_with_other_things_in_them(tmp_path: Path):
    sound = {"a.png": picture(0), "a.txt": "A"}
    corpus = open_corpus(write(tmp_path / "beside", sound | {"b.svg": "<svg/>", "c.heic": "x", "more.zip": "PK"}))
    assert all(words in corpus.unused for words in (".svg", ".heic", ".zip"))
    hidden = sound | {".git/x.png": picture(0), ".git/x.txt": "no", ".b.png": picture(0), ".b.txt": "no"}
    assert outcomes(write(tmp_path / "hidden", hidden)) == ({"a.png": ("A",)}, {})
    linked = write(tmp_path / "linked", sound | {"b.txt": "B"})
    (linked / "b.png").symlink_to(linked / "a.png")
    assert outcomes(linked)[0] == {"a.png": ("A",), "b.png": ("B",)}


@pytest.mark.skipif(os.name != "posix", reason="pipes and sockets in a folder")
def test_what_is_no_file_is_not_read(tmp_path: Path):
    """A reader of a pipe would wait for ever."""
    folder = write(
        tmp_path / "in", {"a.png": picture(0), "a.txt": "A", "b.txt": "B", "c.png": picture(0), "d.txt": "D"}
    )
    os.mkfifo(folder / "b.png")
    os.mkfifo(folder / "c.txt")
    (folder / "d.png").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")
    read, rejected = outcomes(folder)
    assert read == {"a.png": ("A",)}
    assert rejected == {"b.txt": "missing_key", "c.png": "missing_key", "d.txt": "missing_key"}
    os.mkfifo(tmp_path / "lines.jsonl")
    with pytest.raises(UserError, match="lines.jsonl: is a pipe, socket or device.*: write it to a file first"):
        open_corpus(tmp_path / "lines.jsonl")
    os.mkfifo(write(tmp_path / "lines", {"a.jsonl": '{"text": "a"}'}) / "b.jsonl")
    assert [file.name for file in open_corpus(tmp_path / "lines").files] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("empty", {}, "no .jsonl"),
        ("pictures", {"a.png": picture(0), "b.png": picture(0)}, "2 p"),
        ("both", {"a.jsonl": '{"text": "a"}', "b.parquet": "x"}, "name the ones to use"),
        ("wide", {"a.jsonl": '{"text": "a"}\n'.encode("utf-16")}, "tells what it holds"),
        ("parquet", {"a.parquet": b"PAR1xxxx"}, "cannot be read as Parquet"),
    ],
)
def test_what_is_refused_before_the_job_begins(tmp_path: Path, name, files, words):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=words) as refused:
        open_corpus(write(tmp_path / name, files))
    assert "\n" not in str(refused.value)


def test_texts_and_records(tmp_path: Path):
    texts = {
        "ends": ("txt", b" one \r\n two \r\n", ("one \r\n two",)),
        "nul": ("txt", b"a\0b <|vision_start|>", ("a\0b <|vision_start|>",)),
        "mark": ("txt", b"\xef\xbb\xbfA", ("A",)),
        "space": ("txt", b"  \n", "empty_caption"),
        "none": ("txt", b"", "empty_caption"),
        "bytes": ("txt", b"\xff", "invalid_utf8"),
        "half": ("json", b'{"caption": "\\ud800"}', "invalid_utf8"),
        "number": ("json", b'{"caption": 5}', "wrong_type"),
        "null": ("json", b'{"caption": null}', "missing_key"),
        "cut": ("json", b'{"caption": "a"', "invalid_json"),
        "twice": ("json", b'{"caption": "a", "caption": "b"}', "invalid_json"),
    }
    files = {f"{name}.png": picture(0) for name in texts} | {
        f"{name}.{suffix}": data for name, (suffix, data, _) in texts.items()
    }
    read, rejected = outcomes(write(tmp_path / "in", files))
    assert {**read, **rejected} == {f"{name}.png": outcome for name, (_, _, outcome) in texts.items()}


def test_a_key_that_stands_twice_is_named_wherever_json_is_read(tmp_path: Path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n{"text": "d", "more": {"x": 1, "x": 1}}\n')
    found = [item for file in open_corpus(lines).files for item in read_all(open_corpus(lines), file)]
    assert [getattr(item, "reason", "read") for item in found] == ["read", "invalid_json", "invalid_json"]
    assert found[1].detail == "the key 'text' stands twice in an object"


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b'[{"text": "a"}]\n', ["read"]),
        (b'[{"text": "a"}]\n[{"text": "b"}]', ["read", "invalid_json"]),
        (b'[{"text": "a"}]]', ["read", "invalid_json"]),
        (b'[{"text": "a"},]', ["read", "invalid_json"]),
        (
            b'[{"text": "a", "text": "b"}, {"text": "c", "more": [{"x": 1, "x": 2}]}, {"text": "d"}]',
            ["invalid_json"] * 2 + ["read"],
        ),
        (b'[{"text": "a\xff"}, {"text": "\xc3\xbc"}]', ["invalid_utf8", "read"]),
        (b'[{"image": "\xff.png", "caption": "a"}]', ["invalid_utf8"]),
    ],
)
def test_what_json_lines_reject_a_json_list_rejects_too(tmp_path: Path, data: bytes, outcome: list[str]):
    """Of a list nothing is lost behind its end, by a key that stands twice, or in bytes that are no text."""
    path = write(tmp_path, {"a.json": data}) / "a.json"
    corpus = open_corpus(path)
    assert [getattr(item, "reason", "read") for item in read_all(corpus, corpus.files[0])] == outcome


def read_all(corpus, file) -> list:
    with corpus.open(file) as opened:
        return [item for _, item in corpus.read(opened, 0)]


def test_paths_that_lead_elsewhere(tmp_path: Path):
    lines = [{"image": path, "caption": "a"} for path in ("../x.png", "/etc/hostname", "no.png")]
    assert list(prepared_reasons(jsonl(tmp_path / "a.jsonl", lines))) == ["unsafe_path", "unsafe_path", "missing_file"]
    assert list(prepared_reasons(tar(tmp_path / "t.tar", [("../a.png", picture(0)), ("../a.txt", b"x")]))) == [
        "unsafe_path"
    ]


def prepared_reasons(path: Path):
    corpus, preparation = open_corpus(path), Preparation(None, 32, Filters())
    for file in corpus.files:
        for item in read_all(corpus, file):
            yield preparation.decode(item)[0].reason
