"""Prompt files as people save them are read, and what is none is refused by its file, its line and its value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.tools.evaluation.prompt_files import DPG, GENEVAL, IMGEDIT, write_prompts
from tools.evaluation.benchmarks import BENCHMARKS, Item, digest, read_items, rewritten

BOM = b"\xef\xbb\xbf"
LINE = '{"tag": "position", "include": [], "prompt": "a cat"}\n'


def geneval(folder: Path, content: str | bytes) -> list[Item]:
    path = folder / "metadata.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_items(BENCHMARKS["geneval"], path)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_a_byte_order_mark_and_line_ends_of_windows_change_no_item(tmp_path, task):
    path = write_prompts(tmp_path, task)
    there = read_items(BENCHMARKS[task], path)
    for file in path.iterdir() if path.is_dir() else (path,):
        file.write_bytes(BOM + file.read_bytes().replace(b"\n", b"\r\n"))
    items = read_items(BENCHMARKS[task], path)
    assert items == there and digest(items) == digest(there)


def test_a_line_ends_at_its_line_feed_only(tmp_path):
    items = geneval(tmp_path, LINE.replace("a cat", "a cat\u2028and a dog\x85") + LINE)
    assert [item.prompt for item in items] == ["a cat\u2028and a dog\x85", "a cat"]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "one\u2028two"}\n', encoding="utf-8")
    assert [item.prompt for item in read_items(BENCHMARKS["dpg"], path)] == ["one\u2028two"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"tag": "position", "prompt": ["a cat"]}', r"line 2: prompt is \['a cat'\], no text"),
        ('{"tag": "position", "prompt": null}', "line 2: prompt is None, no text"),
        ('{"tag": 5, "prompt": "a cat"}', "line 2: tag is 5, no text"),
        ('{"tag": "position"}', "line 2: has no prompt"),
        ('["a cat"]', "line 2: is no object"),
        ("index\tquestion\tanswer", "line 2: .*JSON"),
        ("[" * 100_000, "line 2: .*nested"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=f"metadata.jsonl is no prompt file of geneval .{message}"):
        geneval(tmp_path, LINE + line + "\n")


def test_items_of_edits_are_named_by_their_key(tmp_path):
    path = tmp_path / "basic_edit.json"
    for value, message in (
        (IMGEDIT["7"] | {"prompt": 3}, "item 8: prompt is 3, no text"),
        (IMGEDIT["7"] | {"edit_type": None}, "item 8: edit_type is None, no text"),
        (IMGEDIT["7"] | {"id": 5}, "item 8: id is 5, no text"),
        ("Draw it", "item 8: is no object"),
    ):
        path.write_text(json.dumps({"7": IMGEDIT["7"], "8": value}))
        with pytest.raises(UserError, match=f"basic_edit.json is no prompt file of imgedit .{message}"):
            read_items(BENCHMARKS["imgedit"], path)
    for content in ("[]", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(UserError, match="no prompt file of imgedit"):
            read_items(BENCHMARKS["imgedit"], path)


def test_keys_are_the_names_that_the_scorer_makes_of_files(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a.b", "prompt": "x"}\n{"id": "a.c", "prompt": "y"}\n')
    with pytest.raises(UserError, match="up to the first dot.*'a.b'"):
        read_items(BENCHMARKS["dpg"], path)
    path.write_text('{"id": "a/b", "prompt": "x"}\n')
    with pytest.raises(UserError, match="'a/b' is no name of a file"):
        read_items(BENCHMARKS["dpg"], path)


def test_what_is_no_prompt_in_a_folder_of_prompts_is_refused(tmp_path):
    path = write_prompts(tmp_path, "dpg")
    (path / ".DS_Store").write_bytes(b"\0")  # of a file manager, like all hidden ones
    assert len(read_items(BENCHMARKS["dpg"], path)) == len(DPG)
    (path / "readme.md").write_text("which prompts these are")
    with pytest.raises(UserError, match="readme.md is no KEY.txt"):
        read_items(BENCHMARKS["dpg"], path)
    (path / "readme.md").unlink()
    (path / "more.txt").mkdir()
    with pytest.raises(UserError, match="more.txt is no KEY.txt"):
        read_items(BENCHMARKS["dpg"], path)


def rewrite(folder: Path, name: str, content: str | bytes) -> list[str]:
    items = read_items(BENCHMARKS["geneval"], write_prompts(folder, "geneval"))
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [item.prompt for item in rewritten(items, path)]


def test_rewritten_prompts_are_read_to_their_line_feeds_without_a_byte_order_mark(tmp_path):
    assert rewrite(tmp_path, "new.txt", BOM + b"a\r\nb\xe2\x80\xa8b\r\nc\r\n") == ["a", "b\u2028b", "c"]
    assert rewrite(tmp_path, "new.json", BOM + b'["a", "b", "c"]') == ["a", "b", "c"]
    assert rewrite(tmp_path, "new.json", '{"00000": "a", "00002": "c", "00001": "b"}') == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("new.json", '{"00000": {"a": 1}, "00001": "b", "00002": "c"}', "00000: .*'a': 1.*no text"),
        ("new.json", '["a", null, "c"]', "prompt 2: None is no text"),
        ("new.json", '{"00000": "a", "00000": "b", "00001": "c", "00002": "d"}', "'00000' stands twice"),
        ("new.json", '{"00000": "a", "00001": "b", "00002": "c", "x": "d"}', "'x' is the key of no item"),
        ("new.json", '"abc"', "neither a list nor an object"),
        ("new.json", "5", "neither a list nor an object"),
        ("new.json", "[" * 100_000, "cannot be read"),
        ("new.json", '["a", "\\ud800", "c"]', "not valid Unicode"),
        ("new.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n', "ends in neither .txt nor .json"),
        ("new.txt", "a\n\nb\nc\n", "line 2 is empty"),
        ("new.txt", "a\nb\n", "has 2 prompts, 3 are needed"),
    ],
)
def test_what_rewrites_no_item_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        rewrite(tmp_path, name, content)


def test_the_small_files_are_read(tmp_path):
    assert [item.prompt for item in geneval(tmp_path, "".join(json.dumps(line) + "\n" for line in GENEVAL))] == [
        line["prompt"] for line in GENEVAL
    ]
