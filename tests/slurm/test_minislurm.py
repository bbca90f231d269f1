"""The throw-away cluster itself: it comes up twice the same, nodes are apart, and nothing is left of it."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, Cluster


def digest(folder: Path) -> str:
    """What names of namespaces and links of a cluster are made of."""
    return hashlib.md5(str(folder).encode()).hexdigest()


def network_names() -> str:
    """Namespaces and links that there are."""
    return subprocess.run("ls /run/netns; ip -br link", shell=True, capture_output=True, text=True).stdout


def of_cluster(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and int(path.parent.name) != os.getpid():
            found.append(words)
    return found


def test_up_and_down(cluster: Cluster, tmp_path):
    """A second cluster beside the session's, with nodes of its own; `cluster` says whether there can be one here.

    Its folder is one for which both would begin on the same network: a cluster that was never taken down, of any folder,
    once kept the nodes of another from reaching their controller.
    """
    names = (f"own{number}" for number in itertools.count())
    own = Cluster(
        tmp_path / next(name for name in names if digest(tmp_path / name)[:2] == digest(cluster.folder)[:2]), 3
    )
    try:
        comes_up_and_is_apart(own, tmp_path / "out")
    finally:
        own.down()
    assert (
        not own.folder.exists() and not of_cluster(own.folder) and f"ms{digest(own.folder)[:8]}" not in network_names()
    )


def comes_up_and_is_apart(own: Cluster, out: Path) -> None:
    """Three nodes of two GPUs each, a job on all of them, one that dies and comes back."""
    own.up("--partitions", "gpu,long", "--features", "h100")
    own.minislurm("up", "--nodes", 3)  # again: nothing changes
    assert own.run("sinfo", "-h", "-p", "long", "-o", "%D %f %G") == "3 h100 gpu:2"
    assert f"ms{digest(own.folder)[:8]}-node3" in network_names()
    job = own.submit(
        "--nodes=3",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--partition=gpu",
        "--constraint=h100",
        f"--output={out}",
        "--wrap=srun bash -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES $(cat /proc/net/dev | wc -l)'",
    )
    assert own.finished(job)["JobState"] == "COMPLETED"
    lines = sorted(out.read_text().splitlines())
    assert [line.split()[:2] for line in lines] == [[f"node{number}", "0,1"] for number in (1, 1, 2, 2, 3, 3)]
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout
    slurm = [line.split()[3] for line in listening.splitlines() if "slurm" in line]
    assert len(slurm) >= 2 and all(address.startswith(("198.18.", "198.19.")) for address in slurm)
    sleeping = own.submit("--nodes=2", "--wrap=srun sleep 1000", "--output=/dev/null")
    own.wait(sleeping, lambda shown: shown["JobState"] == "RUNNING")
    own.minislurm("kill-node", 1)
    assert not any(environment["SLURMD_NODENAME"] == "node1" for environment in own.processes(sleeping).values())
    own.minislurm("join-node", 1)


@pytest.mark.parametrize(
    "words",
    [
        ["up", "--nodes"],
        ["up", "--colour", "red"],
        ["kill-node", "77"],
        ["up", "--nodes", "abc"],
        ["up", "--nodes", "0"],
        ["up", "--gpus", "-1"],
        ["up", "--memory", "1e3"],
        ["up", "--grace", "x"],
        ["up", "--partitions", "a;b"],
        ["up", "--partitions", "gpu,urgent"],
        ["up", "--features", "h100 a100"],
        ["status"],
        ["env"],
        ["log"],
        ["run", "true"],
    ],
)
def test_wrong_usage_is_one_line(cluster: Cluster, words, tmp_path):
    done = subprocess.run(
        [str(ROOT / "slurm/minislurm"), *words],
        env={**os.environ, "MINISLURM_DIR": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["up", "down"])
def test_a_folder_of_other_files_is_left_alone(cluster: Cluster, word, tmp_path):
    """`down` removed whatever MINISLURM_DIR was: a home folder too."""
    (tmp_path / "mine.txt").write_text("mine")
    environment = {**os.environ, "MINISLURM_DIR": str(tmp_path)}
    command = [str(ROOT / "slurm/minislurm"), word]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path} holds other files"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_it_explains_itself():
    done = subprocess.run([str(ROOT / "slurm/minislurm"), "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "kill-node N" in done.stdout and "slurm-wlm" in done.stdout
