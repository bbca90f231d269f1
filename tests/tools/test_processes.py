"""Processes of one machine: what each is told, how they end, and what their failure makes of the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.runs.processes import run_processes

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import json, os, signal, sys, time
folder, fails = sys.argv[1], sys.argv[2]
told = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: told.append(signal.Signals(number).name))
rank = os.environ["RANK"]
open(f"{folder}/started{rank}", "w").close()
while rank != fails and not told:
    time.sleep(0.02)
time.sleep(0.5 if told else 0)  # saving; a second signal may come
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "MINE")
record = {"told": told, "port": os.environ["MASTER_PORT"], **{name: os.environ.get(name) for name in names}}
json.dump(record, open(f"{folder}/{rank}.json", "w"))
sys.exit(3 if rank == fails else 0)
"""
SUM = """
import os, torch
torch.distributed.init_process_group("gloo")
number = torch.tensor(float(os.environ["RANK"]) + 1)
torch.distributed.all_reduce(number)
assert number.item() == 3.0
torch.distributed.destroy_process_group()
"""


def records(folder: Path, count: int) -> list[dict]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def test_the_others_are_told_when_one_fails(tmp_path: Path):
    assert run_processes(["-c", RANK, str(tmp_path), "1"], 3, {**os.environ, "MINE": "yes"}) == 3
    found = records(tmp_path, 3)
    assert [one["told"] for one in found] == [["SIGTERM"], [], ["SIGTERM"]]
    assert [one["RANK"] for one in found] == [one["LOCAL_RANK"] for one in found] == ["0", "1", "2"]
    assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["MASTER_ADDR"]) for one in found} == {
        ("3", "3", "127.0.0.1")
    }
    assert len({one["port"] for one in found}) == 1 and {one["MINE"] for one in found} == {"yes"}


def test_processes_find_each_other():
    assert run_processes(["-c", SUM], 2, os.environ) == 0


def test_at_ctrl_c_each_is_told_once_and_waited_for(tmp_path: Path):
    words = f"run_processes(['-c', {RANK!r}, {str(tmp_path)!r}, 'none'], 2, os.environ)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import os\nfrom tools.runs.processes import run_processes\n{words}"],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 300
        while not all((tmp_path / f"started{rank}").exists() for rank in range(2)):
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.02)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        _, err = parent.communicate(timeout=300)
    finally:
        parent.kill()
    assert "KeyboardInterrupt" in err
    assert [one["told"] for one in records(tmp_path, 2)] == [["SIGINT"], ["SIGINT"]]
