"""tools/gpu_check.py: all of it that a CPU can run runs, and what was not run is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import ROOT, CommandServer, Finished
from tools import gpu_check
from tools.benchmarks.gpu import steps
from tools.benchmarks.gpu.setting import Setting

pytestmark = pytest.mark.slow

SECTIONS = {
    "ceilings",
    "exactness",
    "steps",
    "host reads and kernels",
    "pictures to codes",
    "drawing",
    "decoding",
    "run.deterministic",
}


def check(commands: CommandServer, output: Path, *arguments: object) -> tuple[Finished, dict]:
    done = commands.run("tools/gpu_check.py", "--output", output, *arguments)
    return done, json.loads((output / "gpu_check.json").read_text()) if (output / "gpu_check.json").exists() else {}


def test_on_a_cpu_everything_is_run_at_a_small_size(commands, tmp_path):
    done, record = check(commands, tmp_path / "out")
    assert done.code == 0 and not record["failed"], (done.err, record.get("failed"))
    assert set(record["sections"]) == SECTIONS and set(record["not run"]) == {"GPU", "kernels", "against"}
    exact = record["sections"]["exactness"]
    assert len(exact) == 8 and all(each["within"] for each in exact.values())
    assert all(exact[name]["loss_off"] < 1e-5 for name in exact if name.endswith("fp32"))
    assert record["sections"]["host reads and kernels"]["reads"]["aten::_local_scalar_dense"] > 0
    assert record["sections"]["pictures to codes"]["codes that differ"] < 0.5
    decoding = record["sections"]["decoding"]
    assert decoding.pop("static cache, CUDA graph") == {"not run": "needs a GPU"}
    assert len(decoding) == 3 and all(each["off"] < 1e-5 for each in decoding.values()), decoding
    table = (tmp_path / "out/gpu_check.md").read_text()
    assert table.strip() in done.out and "| GPU | torch finds none here" in table and "separated fp32" in table


def test_two_checkouts_are_measured_in_turn():
    """This one against itself, at a small size; a process for each turn, of which two are tried."""
    small = Setting("cpu", "tiny", (64,), ("fp32",), 1)
    found = steps.against(small, ROOT, ROOT, turns=steps.TURNS[:2])
    assert found["64"]["times_faster"] > 0 and len(found["64"]["range"]) == 1
    assert tuple(reversed(steps.TURNS)) == steps.TURNS and steps.TURNS.count("own") == steps.TURNS.count("other")


def test_what_there_was_no_time_for_is_said(commands, tmp_path):
    done, _ = check(commands, tmp_path / "out", "--minutes", 0)
    assert done.code == 0 and done.out.count("the 0 minutes were over") == len(SECTIONS) + 2


def test_a_section_that_fails_is_in_the_table():
    machine = {"gpus": "H100", "libraries": {"torch": "2.11.0"}}
    record = {
        "command": "python",
        "machine": machine,
        "sections": {},
        "not run": {},
        "failed": {"steps": "Traceback\nOops: no"},
    }
    assert "on H100; torch 2.11.0" in gpu_check.table(record) and "| steps | **failed**: Oops: no |" in gpu_check.table(
        record
    )
