"""The step of the 3B's layers on tensors that say that they are on a GPU: nothing waits, and the planner counts right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.dry_run_cases import CASES, COUNTED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess:
    """Steps of every case."""
    words = [sys.executable, "tests/tools/dry_run_cases.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def ranks(done) -> dict[str, list[dict]]:
    """What a rank of each stage did, by case."""
    return json.loads(done.stdout.splitlines()[-1])


def test_libraries_say_nothing_beside_the_results(done):
    assert not [line for line in done.stderr.splitlines() if "Warning" in line or "not provided" in line], done.stderr


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_one_number_from_the_device_and_waits_for_nothing_else(ranks, case):
    for seen in ranks[case]:
        assert sum(seen["reads"].values()) == 1 and seen["synchronised"] == 0


@pytest.mark.parametrize("case", [case for case in CASES if "fp32" not in case])
def test_a_row_is_one_copy_to_the_device(ranks, case):
    for seen in ranks[case]:
        assert seen["copies"] <= seen["rows"]


@pytest.mark.parametrize("case", CASES)
def test_the_planner_counts_the_peak_within_3_percent(ranks, case):
    for seen in ranks[case]:
        assert seen["planned"] == pytest.approx(seen["peak"], rel=0.03)


@pytest.mark.parametrize("case", COUNTED)
def test_the_planner_counts_what_goes_to_memory_within_10_percent(ranks, case):
    (seen,) = ranks[case]
    assert seen["planned_moved"] == pytest.approx(seen["moved"], rel=0.1)


def test_what_is_cheap_is_computed_again_and_not_kept(ranks):
    """Of four layers; the rest of what is kept of a row is the head's gradients, made beside the loss, one in float32."""
    for case in ("tp1", "tp2 sp"):
        kept, lean = (ranks[name][0]["kept"] for name in (case, f"{case} cheap"))
        assert lean < 0.8 * kept


def test_gradients_in_bfloat16_take_and_send_half(ranks):
    whole, half = (ranks[name][0]["sent"]["reduce_scatter_tensor_coalesced"] for name in ("tp1", "tp1 gradients bf16"))
    assert 2 * half == whole
    saved = ranks["tp1"][0]["static"] - ranks["tp1 gradients bf16"][0]["static"]
    assert saved > 0.35 * whole  # half the buffer, but for the rank's own eighth in float32, which the update reads


def test_what_saves_memory_saves_it(ranks):
    peaks = [ranks[case][0]["peak"] for case in ("tp1", "tp1 recompute", "tp2 sp", "tp2 sp recompute")]
    assert peaks == sorted(peaks, reverse=True)
    assert ranks["tp1"][0]["kept"] < 5.1 * 2**30  # 6.4 GiB if a feed-forward kept five tensors


def test_logits_never_exist_whole(ranks):
    whole = 10_240 * 160_128 * 2
    assert all(size < whole / 2 for size, what in ranks["tp1"][0]["at_peak"] if "160128" in what.split("]")[0])


def test_collectives_are_those_of_the_layout(ranks):
    weights = {case: ranks[case][0]["sent"] for case in ("tp1", "tp2 sp")}
    assert weights["tp1"]["allgather_into_tensor_coalesced"] * 2 == weights["tp1"]["reduce_scatter_tensor_coalesced"]
    assert (
        weights["tp2 sp"]["reduce_scatter_tensor_coalesced"] < 0.51 * weights["tp1"]["reduce_scatter_tensor_coalesced"]
    )


def test_the_command_prints_a_line_for_each_stage_and_writes_its_figures(tmp_path):
    words = [
        sys.executable,
        "tools/dry_run.py",
        "pretrain/configs/demo.yaml",
        "--gpus",
        "2",
        "parallel.pipeline=2",
        "run.precision=bf16",
        "data.global_batch_size=4",
        "--json",
        str(tmp_path / "seen.json"),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| stage") and [line.split()[1] for line in lines[2:4]] == ["1", "2"]
    assert [each["stage"] for each in json.loads((tmp_path / "seen.json").read_text())] == [1, 2]


def test_what_cannot_be_run_dry_is_refused_before_anything_is_loaded():
    words = [sys.executable, "tools/dry_run.py", "pretrain/configs/pretrain_3b.yaml", "--gpus", "8"]
    for wrong, said in (
        (["run.engine=zero3"], "run.engine is zero3"),
        (["data.sequence_length=12"], "data.sequence_length 12"),
        (["--json", "tools"], "--json tools: is a folder"),
    ):
        done = subprocess.run([*words, *wrong], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
