"""The command as a person starts it on several devices: under torchrun, with a stop from outside and a wrong layout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.pretrain.tiny_run import TinyData, checkpoint_names, read_metrics, write_config

ROOT = Path(__file__).resolve().parents[2]


def start(config: Path, processes: int, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*command, str(ROOT / "pretrain/train.py"), "--config", str(config), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_stop_saves_and_the_same_command_goes_on(tiny_data: TinyData, tmp_path):
    """The signal goes to torchrun, which hands it to the processes it started; loader workers are there too."""
    config, run = write_config(tiny_data, tmp_path / "run"), tmp_path / "run"
    layout = ["parallel.tensor=2", "parallel.sequence=true", "data.workers=1", "checkpoint.every=100000"]
    process = start(config, 2, *layout, "run.steps=100000")
    try:
        end = time.monotonic() + 600
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 3:
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert "the same command goes on from here" in out, err
    assert out.count("steps done") == 1 and "tok/s" in out
    assert out.count("--shutdown-timeout") == 1
    (name,) = checkpoint_names(run)
    steps = int(name.removeprefix("step_"))
    assert read_metrics(run)[-1]["step"] == steps
    refused = start(config, 2, "parallel.pipeline=3")
    _, err = refused.communicate(timeout=600)
    assert refused.returncode != 0 and err.count("2 processes cannot hold") == 1
