"""A throw-away cluster for tests: `slurm/minislurm` from Python, jobs on it, and the processes of a job."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
GONE = tuple(state for state in OVER if state != "NODE_FAIL")  # after that one it may be queued again


def why_not() -> str:
    """Why no cluster can be made here; "" if it can."""
    if os.getuid() != 0:
        return "slurm/minislurm needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"  # as slurm/minislurm looks
    missing = [tool for tool in ("slurmctld", "slurmd", "munged", "ip") if not shutil.which(tool, path=path)]
    return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge iproute2" if missing else ""


@dataclass
class Cluster:
    """Virtual nodes node1, node2, ... with two claimed GPUs each; everything lies in `folder`."""

    folder: Path
    nodes: int = 2
    environment: dict[str, str] = field(default_factory=dict)

    def minislurm(self, *words: object, seconds: float = 3000) -> str:
        """Run slurm/minislurm for this cluster -> what it printed."""
        environment = {**os.environ, "MINISLURM_DIR": str(self.folder)}
        command = [str(ROOT / "slurm/minislurm"), *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, (words, done.stderr, self.log() if words[0] == "up" else "")
        return done.stdout

    def up(self, *options: object) -> None:
        """Start it. Jobs have minutes to save: on a busy machine Slurm's half minute would end them first."""
        self.minislurm("up", "--nodes", self.nodes, "--gpus", 2, "--kill-wait", 300, *options)
        words = self.minislurm("env").removeprefix("export ").split()
        self.environment = {**os.environ, **dict(word.split("=", 1) for word in words)}

    def down(self) -> None:
        """End it, and all that runs on it."""
        self.minislurm("down")

    def log(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files)

    def run(self, *command: object, seconds: float = 300, **environment: str) -> str:
        """Run a command of Slurm's -> what it printed."""
        done = subprocess.run(
            [*map(str, command)],
            env={**self.environment, **environment},
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=seconds,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, *words: object, **environment: str) -> str:
        """sbatch in the repository's folder -> the job's number."""
        return self.run("sbatch", "--parsable", *words, **environment)

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, condition: Callable[[dict[str, str]], bool], seconds: float = 30000) -> dict[str, str]:
        """Until `condition` holds of what Slurm shows of a job. AssertionError when the job is over before, or after `seconds`."""
        end = time.monotonic() + seconds
        while not condition(shown := self.show(job)):
            assert shown["JobState"] not in GONE and time.monotonic() < end, f"{shown}\n{written_by(shown)}"
            time.sleep(0.5)
        return shown

    def finished(self, job: str, seconds: float = 30000) -> dict[str, str]:
        """Wait for the end of a job."""
        return self.wait(job, lambda shown: shown["JobState"] in OVER, seconds)

    def processes(self, job: str) -> dict[int, dict[str, str]]:
        """Every living process of a job on all nodes -> its environment, by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
                state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it ended meanwhile
                continue
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            mine = (
                environment.get("SLURM_JOB_ID") == job
                and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            )
            if mine and state != "Z":
                found[int(path.parent.name)] = environment
        return found

    def ranks(self, job: str) -> dict[int, int]:
        """Process ids of the training processes of a job, by rank."""
        found = {}
        for pid, environment in self.processes(job).items():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                "RANK" in environment
                and any(word.endswith(b"pretrain/train.py") for word in words)
                and words[0] != b"bash"
            ):
                found[int(environment["RANK"])] = pid
        return found


def written_by(shown: dict[str, str]) -> str:
    """The end of what a job wrote."""
    path = Path(shown.get("StdOut", "/dev/null"))
    return path.read_text(errors="replace")[-3000:] if path.is_file() else ""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, for the whole session. Never skipped in CI."""
    reason = why_not()
    if reason and os.environ.get("CI") != "true":
        pytest.skip(reason)
    assert not reason, reason
    made = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        made.up()
        yield made
    finally:
        made.down()
