#!/usr/bin/env python
"""A night in ten minutes: one training run on a throw-away cluster, and everything that can happen to it, for real.

Two runs of one configuration through slurm/pretrain_3b.sbatch: one that is left alone, one that is not. The second must
end with the same loss curve, row for row: to the last bit until the number of ranks first changes, within 1e-5 after.
Writes report.md and report.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import yaml

from slurm.attempt import ended, last_step, newest_checkpoint, recomputed
from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData, build_tiny_data, config_values
from tests.slurm.cluster import Cluster, why_not

SAME = 1e-5  # relative difference of a loss that another number of ranks may make
SETTINGS = {"UNIX_WAIT": "8", "UNIX_MIN_DISK": "0.5", "UNIX_RESTARTS": "3"}


@dataclass
class Night:
    """A disturbed run, and what was done to it."""

    cluster: Cluster
    config: Path
    run: Path
    job: str = ""
    told: list[dict] = field(default_factory=list)
    zombies: int = 0  # ranks that outlived their attempt in the last fault

    def step(self) -> int:
        """The last step that the run has told of."""
        return last_step(self.run)

    def attempt(self) -> int:
        """The number of the attempt that is running."""
        try:
            return json.loads((self.run / "attempt.json").read_text())["attempt"]
        except (OSError, ValueError):
            return 0

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 400) -> None:
        """Wait for something to become true; the run must not end before."""
        end, look = time.monotonic() + seconds, 0.0
        while not condition():
            time.sleep(0.2)
            if time.monotonic() < look:  # asking Slurm takes more than most conditions do
                continue
            look = time.monotonic() + 2
            assert time.monotonic() < end, f"{what}: not in {seconds} s\n{self.log()}"
            assert self.cluster.show(self.job)["JobState"] in (
                "RUNNING",
                "PENDING",
                "REQUEUED",
                "COMPLETING",
                "PREEMPTED",
                "NODE_FAIL",
            ), f"{what}: the job ended\n{self.log()}"

    def log(self) -> str:
        """The end of what the job wrote, and of the log of each rank of its attempt."""
        files = [self.run.with_suffix(".out"), *sorted((self.run / "logs" / f"attempt_{self.attempt():04d}").glob("*"))]
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files if file.exists())

    def train_on(self, steps: int) -> None:
        """Let it train some steps more, at least to the second checkpoint."""
        goal = self.step() + steps
        self.until(
            lambda: self.step() >= goal and len(list((self.run / "checkpoints").glob("step_*[0-9]"))) > 1,
            f"{steps} more steps",
        )

    def suffer(self, name: str, fault: Callable[[Night], None], restarts: bool = True) -> None:
        """Do something to the run, and wait until it trains again beyond where it was."""
        self.train_on(8)
        self.zombies = 0
        before, step, begin = self.attempt(), self.step(), time.monotonic()
        fault(self)
        if restarts:
            self.until(lambda: self.attempt() > before, f"{name}: a new attempt")
        self.until(lambda: self.step() > step + 2 and len(self.cluster.ranks(self.job)) > 0, f"{name}: new steps")
        entry = next((e for e in ended(self.run) if e["attempt"] == before), None)
        self.told.append(
            {
                "fault": name,
                "at_step": step,
                "seconds": round(time.monotonic() - begin, 1),
                "attempt": before,
                "reason": entry["reason"] if entry else "training went on",
                "ranks_after": json.loads((self.run / "attempt.json").read_text())["ranks"],
                "zombies": self.zombies,
            }
        )
        print(f"night: {json.dumps(self.told[-1])}", flush=True)


def time_limit(night: Night) -> None:
    """Slurm's own word ahead of the limit: the limit is brought so near that the word is due."""
    night.cluster.run("scontrol", "update", f"jobid={night.job}", "TimeLimit=10")
    night.until(lambda: night.cluster.show(night.job)["Restarts"] != restarts_of(night), "the requeue")
    night.cluster.run("scontrol", "update", f"jobid={night.job}", "TimeLimit=600")


def restarts_of(night: Night) -> str:
    """How often Slurm had started the job again when the current attempt began."""
    return str(json.loads((night.run / "attempt.json").read_text())["slurm_restarts"])


def pre_emption(night: Night) -> None:
    """A job of a partition with precedence wants both nodes."""
    job = night.cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    night.cluster.finished(job)


def killed_rank(night: Night) -> None:
    """kill -9, as the kernel does when memory runs out."""
    os.kill(night.cluster.ranks(night.job)[3], signal.SIGKILL)


def flipped_byte(night: Night) -> None:
    """Damage in the newest checkpoint, then a reason to load it."""
    newest = night.run / "checkpoints" / f"step_{newest_checkpoint(night.run):08d}"
    file = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.kill(night.cluster.ranks(night.job)[0], signal.SIGKILL)


def full_disk(night: Night) -> None:
    """No room for the next checkpoints; then there is again."""
    ballast = night.run / "checkpoints" / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb") as file:
        while True:
            file.write(b"\0" * 65536)
    log = night.run / "logs" / f"attempt_{night.attempt():04d}" / "rank_0000.log"
    night.until(lambda: "could not be written" in log.read_text(), "a save that fails")
    ballast.unlink()
    newest = newest_checkpoint(night.run)
    night.until(lambda: newest_checkpoint(night.run) > newest, "a save that succeeds")


def hung_rank(night: Night) -> None:
    """A process that stands still, and whom everybody waits for."""
    os.kill(night.cluster.ranks(night.job)[2], signal.SIGSTOP)


def power_cut(night: Night) -> None:
    """A node dies without a word."""
    night.cluster.minislurm("kill-node", 2)


def cut(night: Night, node: int) -> None:
    """Pull a node's cable, and put it back when the run trains elsewhere; its ranks live on meanwhile, unseen."""
    zombies = [
        pid
        for pid, environment in night.cluster.processes(night.job).items()
        if environment.get("SLURMD_NODENAME") == f"node{node}" and "RANK" in environment
    ]
    night.cluster.minislurm("cut-node", node)
    before, step = night.attempt(), night.step()
    night.until(lambda: night.attempt() > before, "an attempt without the node")
    night.zombies = sum(Path(f"/proc/{pid}").exists() for pid in zombies)
    night.until(lambda: night.step() > step, "new steps without the node")
    night.cluster.minislurm("join-node", node)
    night.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in zombies), "the end of the zombies")


def network_cut(night: Night) -> None:
    """The second node is cut off; the first goes on."""
    cut(night, 2)


def first_node_cut(night: Night) -> None:
    """The node of the batch script and of rank 0 is cut off: Slurm queues the job again, and it starts on the other."""
    cut(night, 1)


def node_back(night: Night) -> None:
    """The dead node returns; a pre-emption later the run has all nodes again."""
    night.cluster.minislurm("join-node", 2)  # it may be there already
    end = time.monotonic() + 60
    while "idle" not in night.cluster.run("sinfo", "-h", "-n", "node2", "-p", "batch", "-o", "%T"):
        assert time.monotonic() < end, night.cluster.run("sinfo", "-N", "-l")
        time.sleep(0.5)
    pre_emption(night)


FAULTS: dict[str, tuple[Callable[[Night], None], bool]] = {  # by name: what is done, and whether an attempt ends by it
    "time limit": (time_limit, True),
    "pre-emption": (pre_emption, True),
    "killed rank": (killed_rank, True),
    "flipped byte in the newest checkpoint": (flipped_byte, True),
    "full disk during a save": (full_disk, False),
    "hung rank": (hung_rank, True),
    "power-cut node": (power_cut, True),
    "node back and pre-emption": (node_back, True),
    "network-cut node": (network_cut, True),
    "node back again and pre-emption": (node_back, True),
    "network-cut first node": (first_node_cut, True),
}
NAN = "NaN gradient"  # of one row, in both runs: the step that takes it makes no update
NAN_ROW = 13  # of the fourth step


def write_config(data: TinyData, run: Path, steps: int) -> Path:
    """A small configuration of this run, four rows a step: for 4 ranks, or 2."""
    values = config_values(data, run)
    values["run"] |= {"steps": steps, "timeout": 120.0}
    values["model"] |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    values["data"] |= {"global_batch_size": 4, "sequence_length": 512}
    values["optim"] |= {"lr": 1e-3, "final_lr": 1e-4}
    values["checkpoint"] = {"every": 5, "keep": 3}
    values["log"] |= {"heldout_every": 0, "heldout_rows": 4}
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def submit(cluster: Cluster, config: Path, run: Path, words: list[str], **environment: str) -> str:
    """The batch script as it is, with two nodes of two, or one of them where there is no other."""
    return cluster.submit(
        "--nodes=1-2",
        "--gpus-per-node=2",
        f"--output={run.with_suffix('.out')}",
        "slurm/pretrain_3b.sbatch",
        *words,
        UNIX_CONFIG=str(config),
        **SETTINGS,
        **environment,
    )


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own for a folder, so that it can be full."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "night", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def poisoned_environment(folder: Path) -> Path:
    """A virtual environment by its look, whose Python trains with one row that has no gradient."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f"""#!/bin/bash
case $1 in */pretrain/train.py) set -- {ROOT}/tests/slurm/nan_gradient.py {NAN_ROW} "$@" ;; esac
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    return folder


def losses(run: Path) -> dict[int, dict[str, float]]:
    """What each step consumed and gave, without its speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {key: value for key, value in line.items() if key.startswith("train/")}
        for line in lines
        if "train/rows" in line
    }


def compare(night: Night, reference: Path) -> dict:
    """The curve against the undisturbed one -> steps, how many are equal to the last bit, the largest difference.

    AssertionError for another row or token, a step that is not there, a loss that differs more than it may.
    """
    ours, theirs = losses(night.run), losses(reference)
    assert list(ours) == list(theirs) == list(range(1, len(theirs) + 1))
    whole = max(entry["ranks"] for entry in ended(night.run))
    changed = [
        entry["from_step"]
        for entry in ended(night.run)
        if entry["ranks"] != whole and entry["to_step"] > entry["from_step"]
    ]
    exact_until = min(changed, default=len(ours))
    worst = 0.0
    for step, values in theirs.items():
        for name, value in values.items():
            here = ours[step][name]
            if step <= exact_until or name in (
                "train/rows",
                "train/tokens_text",
                "train/tokens_image",
                "train/learning_rate",
            ):
                assert here == value, f"step {step}: {name} is {here}, {value} in the undisturbed run"
            elif "loss" in name:
                difference = abs(here - value) / abs(value)
                assert difference <= SAME, f"step {step}: {name} is {here}, {value} in the undisturbed run"
                worst = max(worst, difference)
    return {
        "steps": len(ours),
        "equal_to_the_last_bit": sum(ours[step] == values for step, values in theirs.items()),
        "ranks_changed_after_step": exact_until if changed else None,
        "largest_relative_difference": worst,
        "attempts": len(ended(night.run)),
        "recomputed_steps": sum(recomputed(ended(night.run))),
    }


def settings_of(engine: str, hang: float) -> list[str]:
    """What both runs have beside their configuration; hang: seconds without a step after which ranks leave.

    The cluster takes 30 to notice a dead node, so the ranks of the others leave before.
    """
    return [f"run.engine={engine}", f"resilience.hang_seconds={hang}"]


def spend(
    cluster: Cluster,
    data: TinyData,
    folder: Path,
    faults: list[str],
    steps: int,
    engine: str,
    hang: float = 20,
    calm: Path | None = None,
) -> dict:
    """Both runs, all faults -> the report. The cluster must have come up after `folder` got its small disk, if it needs one.

    hang: as in `settings_of`. calm: a run of these steps and settings that nothing has disturbed, where there is one already.
    """
    environment, words = {}, settings_of(engine, hang)
    if NAN in faults:
        environment = {"UNIX_VENV": str(poisoned_environment(folder / "venv"))}
        faults = [name for name in faults if name != NAN]
    if calm is None:
        calm = folder / "undisturbed"
        job = submit(cluster, write_config(data, calm, steps), calm, words, **environment)
        shown = cluster.finished(job, 300 + 4 * steps)
        assert shown["JobState"] == "COMPLETED", calm.with_suffix(".out").read_text()[-3000:]
    night = Night(cluster, write_config(data, folder / "night", steps), folder / "night")
    night.job = submit(cluster, night.config, night.run, words, **environment)
    for name in faults:
        night.suffer(name, *FAULTS[name])
    shown = cluster.finished(night.job, 300 + 4 * steps)
    assert shown["JobState"] == "COMPLETED", night.log()
    steps_again = {
        entry["attempt"]: count for entry, count in zip(ended(night.run), recomputed(ended(night.run)), strict=True)
    }
    for told in night.told:
        told["recomputed"] = steps_again[told["attempt"]] if FAULTS[told["fault"]][1] else 0
    events = night.run / "events.jsonl"
    bad = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return {
        "engine": engine,
        "faults": night.told,
        "steps_left_out": sorted({e["step"] for e in bad if e["event"] == "bad step"}),
        **compare(night, calm),
    }


def page(report: dict) -> str:
    """The report as a page."""
    rows = [
        f"| {told['fault']} | {told['at_step']} | {told['seconds']} | {told['recomputed']} | {told['ranks_after']} | "
        f"{told['zombies']} | "
        f"{told['reason']} |"
        for told in report["faults"]
    ]
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in report.items() if key != "faults")
    return "\n".join(
        [
            "# A night in ten minutes",
            "",
            facts,
            "",
            "| what happened | at step | seconds to new steps | steps recomputed | ranks after | zombies | what the run says |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--faults", default=",".join([NAN, *FAULTS]), help="names, comma-separated (default: all)")
    parser.add_argument("--steps", type=int, default=500, help="of the run (default: %(default)s)")
    parser.add_argument("--engine", choices=("zero3", "megatron"), default="zero3", help="(default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Make the data and the cluster, spend the night, write the report."""
    arguments = parse_arguments()
    if why_not():
        print(f"error: {why_not()}", file=sys.stderr)
        return 2
    from pretrain.system.light_imports import leave_torchvision_out

    leave_torchvision_out()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster and the disk are given back on this way, too
    folder, begin = arguments.output.absolute(), time.monotonic()
    commands = CommandServer(folder / "commands")
    commands.folder.mkdir(parents=True)
    cluster = Cluster(folder / "cluster")
    try:
        data = build_tiny_data(folder / "data", commands)
        commands.close()
        with small_disk(folder / "night" / "checkpoints", 24):
            cluster.up()
            report = spend(cluster, data, folder, arguments.faults.split(","), arguments.steps, arguments.engine)
            report["seconds"] = round(time.monotonic() - begin)
    finally:
        cluster.down()
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(page(report))
    print(page(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
