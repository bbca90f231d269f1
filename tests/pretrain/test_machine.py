"""What a run was computed on is in its folder, and a start on something else says what changed."""

from __future__ import annotations

import json

import pytest

from pretrain import machine
from pretrain.run_folder import last_start
from tests.pretrain.tiny_run import write_config

HERE = {"processor": "A", "capability": "AVX512", "threads": 1, "libraries": {"torch": "2.13.0"}}
GPU = {**HERE, "gpus": "H100", "driver": "580.1"}


def start(*machines: dict) -> dict:
    return {"processes": len(machines), "machines": machine.grouped(machines)}


def test_equal_machines_are_one_group():
    assert machine.grouped([HERE, GPU, HERE]) == [{**HERE, "ranks": [0, 2]}, {**GPU, "ranks": [1]}]


def test_what_changed_is_said_by_name():
    assert machine.what_changed(start(HERE), start(HERE)) == ""
    assert machine.what_changed({"processes": 1}, start(HERE)) == ""  # of before these were written down
    other = {**HERE, "capability": "AVX2", "threads": 2, "libraries": {"torch": "2.14.0", "apex": "1"}}
    assert machine.what_changed(start(HERE), start(other)) == (
        "capability AVX512, now AVX2; threads 1, now 2; apex none, now 1; torch 2.13.0, now 2.14.0"
    )
    assert machine.what_changed(start(GPU), start(GPU, {**GPU, "driver": "590"})) == (
        "processes 1, now 2; driver 580.1, now 580.1 and 590"
    )
    assert machine.what_changed(start(GPU), start(HERE)) == "gpus H100, now none; driver 580.1, now none"


@pytest.mark.parametrize("machines", [3, [3], [{"libraries": 3}], [None]])
def test_a_record_that_somebody_edited_is_no_error(tmp_path, machines):
    assert machine.what_changed({"machines": machines, "processes": 1}, start(HERE)) == ""
    assert machine.what_changed({"machines": machines}, start(HERE)) == ""
    (tmp_path / "starts.jsonl").write_bytes(b'{"processes": 1}\n\xff\n')
    assert last_start(tmp_path) == {"processes": 1}


def test_a_resume_with_other_threads_says_so_once(commands, tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run")
    words = [
        "pretrain/train.py",
        "--config",
        config,
        "log.heldout_rows=1",
        "checkpoint.every=1",
        "run.deterministic=true",
    ]
    said = [
        commands.run(*words, f"run.steps={steps}", f"run.threads={threads}")
        for steps, threads in ((1, 1), (2, 2), (3, 2))
    ]
    assert [done.code for done in said] == [0, 0, 0], said
    lines = ["".join(line for line in done.out.splitlines() if "other machines" in line) for done in said]
    assert lines == [
        "",
        "other machines than before (threads 1, now 2): losses follow to rounding, not to the last bit",
        "",
    ]
    starts = [json.loads(line) for line in (tmp_path / "run/starts.jsonl").read_text().splitlines()]
    assert [found["machines"][0]["threads"] for found in starts] == [1, 2, 2]


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA B200", 2250.0),
        ("Tesla V100-SXM2-32GB", None),
        ("", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all(name, peak):
    assert machine.peak_tflops(name) == peak
