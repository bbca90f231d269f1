"""JSON lines from the end of a file: every line once, whatever the blocks, and nothing but the end of a large one."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from pretrain import json_lines
from pretrain.json_lines import last_objects, lines_backwards
from pretrain.metrics import keep_until


@hypothesis.settings(deadline=None)
@hypothesis.given(
    strategies.lists(strategies.sampled_from([b"", b"a", b"\n", b"{}", b"\r", b"longer line"]), max_size=30),
    strategies.integers(1, 40),
)
def test_lines_are_those_of_the_file_from_its_end(tmp_path_factory, pieces: list[bytes], block: int):
    path, whole = tmp_path_factory.getbasetemp() / "lines", b"".join(pieces)
    path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK", block)
        found = list(lines_backwards(path))
    assert [line for _, line in reversed(found)] == [line for line in whole.split(b"\n") if line]
    for after, line in found:
        assert whole[:after].removesuffix(b"\n").endswith(line)
    assert sorted({after for after, _ in found}, reverse=True) == [after for after, _ in found]


def test_the_last_ones_with_a_key(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert last_objects(path) == []
    lines = [{"step": 1, "a": 1}, {"step": 2, "b": 2}, {"step": 3, "a": 3}, {"step": 4, "b": "a"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '[1]\n{"step": 5, "a')
    assert last_objects(path) == [lines[3]]
    assert last_objects(path, "a", 5) == [lines[0], lines[2]]
    assert last_objects(path, "c") == []


def test_of_a_terabyte_the_end_is_read(tmp_path: Path):
    """A file with a hole before its last lines: whoever reads the hole does not come back."""
    path = tmp_path / "metrics.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        file.seek(0, 2)
        file.write(b"\n" + b"".join(json.dumps({"step": step, "loss": 1.0}).encode() + b"\n" for step in range(200)))
    assert [line["step"] for line in last_objects(path, "loss", 50)] == list(range(150, 200))


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_what_is_kept_ends_with_a_step(tmp_path: Path, step: int):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1}, {"step": 1, "heldout": 1}, {"step": 2}, {"step": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    keep_until(path, step)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        line for line in lines if line["step"] <= step
    ]
    assert not path.read_bytes() or path.read_bytes().endswith(b"\n")
