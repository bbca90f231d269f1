"""docs/other-tools.md, its scripts and their pins fit together; `make test-tools` runs them."""

from __future__ import annotations

import json
import re
import runpy
import sys

import pytest
from packaging.requirements import Requirement

from tests.other_tools.run import HERE, KINDS, PAGE, ROOT, TOOLS, pinned, plain, results, same, table_of, with_rows
from tests.tools.tiny_export import write_export


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_for_each_tool_with_the_version_that_is_installed(kind):
    rows = [row.strip("| ").split(" | ") for row in table_of(page(), kind).splitlines()[2:]]
    assert [row[:2] for row in rows] == [[tool.title, pinned(tool)] for tool in TOOLS if tool.kind == kind]
    assert {len(row) for row in rows} <= {2 + len(KINDS[kind])}
    assert "FAILED" not in str(rows)


def test_every_script_and_every_list_of_pins_is_of_a_tool():
    sources = {tool.source for tool in TOOLS}
    assert {path.name.removesuffix("_tool.py") for path in HERE.glob("*_tool.py")} == sources
    assert {path.stem.removesuffix("-bare") for path in (HERE / "requirements").iterdir()} == sources
    assert len({tool.name for tool in TOOLS}) == len(TOOLS) and {tool.kind for tool in TOOLS} <= set(KINDS)


@pytest.mark.parametrize("path", sorted((HERE / "requirements").iterdir()), ids=lambda path: path.stem)
def test_versions_are_pinned(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        assert not words or re.fullmatch(r"==[^*,]+", str(Requirement(words).specifier)), words


@pytest.mark.parametrize("path", sorted(HERE.glob("*_tool.py")), ids=lambda path: path.stem)
def test_a_script_knows_nothing_of_this_repository(path):
    text = path.read_text(encoding="utf-8")
    compile(text, str(path), "exec")
    assert not re.findall(r"^\s*(?:from|import) (model|pretrain|tokenization|tools|tests)\b", text, re.MULTILINE)


def test_rows_take_the_place_of_theirs_and_leave_the_others():
    tool = next(tool for tool in TOOLS if tool.kind == "runtimes")
    row = f"| {tool.title} | 0 | x |"
    after = with_rows(page(), "runtimes", {tool.title: row})
    old, new = table_of(page(), "runtimes").splitlines(), table_of(after, "runtimes").splitlines()
    assert row in new and len(new) == len(old) and sum(a != b for a, b in zip(old, new, strict=True)) == 1
    assert with_rows(page(), "runtimes", {}) == page()


def test_numbers_may_differ_by_rounding_and_words_may_not():
    assert same("| a | 5e-6 | share 0.94 |", "| a | 2e-5 | share 0.95 |")
    assert (
        not same("| a | 5e-6 |", "| a | 6e-5 |") and not same("| 0.94 |", "| 0.84 |") and not same("| yes |", "| no |")
    )
    assert not same("| 1 of 2 |", "| 1 of |")


def test_a_cell_of_no_column_is_an_error():
    tool = next(tool for tool in TOOLS if tool.kind == "runtimes")
    with pytest.raises(ValueError, match="'txt' is no column of runtimes"):
        results('noise\n{"what": "txt", "result": "x"}', tool)


def test_the_lines_of_the_page_are_lines_of_the_scripts():
    said = [line.strip() for path in HERE.glob("*_tool.py") for line in path.read_text(encoding="utf-8").splitlines()]
    own = page().split("## Quantizers")[1]  # tests/other_tools/trl_tests.py runs what stands before it
    blocks = re.findall(r"```python\n(.*?)```", own, re.DOTALL)
    assert blocks
    assert not [line for block in blocks for line in block.splitlines() if line.strip() and line.strip() not in said]


def test_the_plain_text_folder_is_made_of_the_export(tmp_path):
    export = write_export(tmp_path / "export")
    text = plain(export, tmp_path)
    assert json.loads((text / "config.json").read_text())["model_type"] in ("qwen2", "qwen3", "llama")


EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_it_needs(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--model", "m", "--corpus", "c", "--output", "o"])
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where trl, which brings it, is not installed
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 2
    expected = "error: this needs trl (no module datasets): pip install torch transformers pillow trl\n"
    assert capsys.readouterr().err == expected


def test_an_example_is_of_the_page():
    assert EXAMPLES and all(f"\npython docs/examples/{path.name} --model " in page() for path in EXAMPLES)
