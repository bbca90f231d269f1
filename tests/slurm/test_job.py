"""The batch scripts as they are, on a cluster of two virtual nodes: runs, exports, cancels, refuses, leaves a node out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.attempt import ended, last_step
from slurm.shared_memory import SHARED_MEMORY, in_use
from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData, checkpoint_names
from tests.slurm import night
from tests.slurm.cluster import Cluster

STEPS, ENGINE, HANG = 45, "megatron", 12  # of the run that a night disturbs, and of the one that it does not
SCRIPT = "slurm/pretrain_3b.sbatch"


def submit(cluster: Cluster, config: Path, *words: str, **environment: str) -> str:
    """A rank on each of two nodes: two on a node are those of the run that a night disturbs."""
    return cluster.submit(
        "--nodes=2",
        "--gpus-per-node=2",
        f"--output={config.with_suffix('.out')}",
        SCRIPT,
        *words,
        UNIX_CONFIG=str(config),
        **{**night.SETTINGS, "UNIX_RANKS_PER_NODE": "1", **environment},
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tiny_data: TinyData, tmp_path_factory) -> Path:
    """A run that nothing happens to, of slurm/pretrain_3b.sbatch, unmodified, as slurm/submit.py hands it to Slurm."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    config = night.write_config(tiny_data, run, STEPS)
    said = cluster.run(
        sys.executable,
        "slurm/submit.py",
        "--config",
        config,
        "--nodes",
        2,
        "--gpus-per-node",
        2,
        SCRIPT,
        *night.settings_of(ENGINE, HANG),
        seconds=120,
        SBATCH_OUTPUT=str(config.with_suffix(".out")),
        **night.SETTINGS,
    )
    shown = cluster.finished(said.split()[-1])
    out = config.with_suffix(".out").read_text()
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0"), out
    assert "2 x 2 processes = 4" in said and "GiB on a device" in said
    assert shown["NumNodes"] == "2"  # what it shows is what runs
    assert [entry["ranks"] for entry in ended(run)] == [4]
    return run


def test_from_the_script_to_a_picture(cluster: Cluster, undisturbed: Path, commands: CommandServer, tmp_path):
    """The run, then convert_to_hf.sbatch, then a picture of the export."""
    run, out = undisturbed, undisturbed.with_suffix(".out").read_text()
    assert "attempt 1: 2 nodes (node1,node2) x 2 ranks" in out and f"{run}: {STEPS} of {STEPS} steps done" in out
    assert [entry["decision"] for entry in ended(run)] == ["done"], out
    assert {path.name for path in (run / "preflight/attempt_0001").iterdir()} == {
        "node_node1.json",
        "node_node2.json",
        "link_node1.json",
        "link_node2.json",
    }
    assert len(list((run / "logs/attempt_0001").glob("rank_000[0-3].log"))) == 4
    export = cluster.submit(
        "--mem=2G",
        f"--output={tmp_path / 'export.out'}",
        "slurm/convert_to_hf.sbatch",
        "--checkpoint",
        str(run),
        "--output",
        str(tmp_path / "model"),
    )
    assert cluster.finished(export)["JobState"] == "COMPLETED", (tmp_path / "export.out").read_text()
    done = commands.run(
        "tools/generate.py", "--model", tmp_path / "model", "--prompt", "red heart", "--output", tmp_path / "drawn"
    )
    assert done.code == 0 and (tmp_path / "drawn/0000-00.png").stat().st_size > 0, done.err
    measured = cluster.submit(
        "--mem=2G",
        "--cpus-per-task=1",
        f"--output={tmp_path / 'measured.out'}",
        "slurm/evaluate.sbatch",
        "--run",
        str(run),
        "--step",
        str(STEPS),
        "--task heldout",
    )
    assert cluster.finished(measured)["JobState"] == "COMPLETED", (tmp_path / "measured.out").read_text()
    assert json.loads((run / f"evaluations/{STEPS:08d}/heldout.json").read_text())["complete"]


def test_an_array_of_workers_makes_the_shards_of_one(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """shard_images.sbatch as an array of three tasks over four tars, two at a time: the bytes of a single process."""
    tars = tmp_path / "tars"
    tars.mkdir()
    (source,) = (tiny_data.corpus / "train/webdataset").glob("*.tar")
    for number in range(4):
        shutil.copy(source, tars / f"{number}.tar")
    words = ["--input", tars, "--vq", tiny_data.vq, "--tokenizer", tiny_data.tokenizer]
    outputs = [tmp_path / name for name in ("array", "one")]
    options = ["--mem=2G", "--cpus-per-task=1", f"--output={tmp_path}/task-%a.out", "slurm/shard_images.sbatch", *words]
    jobs = [
        cluster.submit("--array=0-2", *options, "--output", outputs[0]),
        cluster.submit("--array=0-0", *options, "--output", outputs[1]),
    ]
    for job, tasks in zip(jobs, (3, 1)):
        for task in range(tasks):
            shown = cluster.finished(f"{job}_{task}")
            assert shown["JobState"] == "COMPLETED", (tmp_path / f"task-{task}.out").read_text()
    array, one = ({path.relative_to(output): path.read_bytes() for path in output.rglob("*.mds")} for output in outputs)
    assert array == one and len(array) == 4
    manifests = [json.loads((output / "manifest.json").read_text()) for output in outputs]
    assert manifests[0]["shards"] == manifests[1]["shards"]


def test_scancel_saves_and_leaves_nothing(cluster: Cluster, tiny_data: TinyData, tmp_path):
    run = tmp_path / "run"
    config = night.write_config(tiny_data, run, 100_000)
    before = set(SHARED_MEMORY.iterdir())
    job = submit(cluster, config, "checkpoint.every=100000")
    cluster.wait(job, lambda shown: last_step(run) >= 3)
    assert len(cluster.ranks(job)) == 2
    cluster.run("scancel", job)
    assert cluster.finished(job)["JobState"] == "CANCELLED"
    end = time.monotonic() + 120
    while cluster.processes(job):
        assert time.monotonic() < end, cluster.processes(job)
        time.sleep(0.2)
    assert len(checkpoint_names(run)) == 1  # of the moment at which it was cancelled
    assert [entry["decision"] for entry in ended(run)] == ["stop"]
    while left := {path.name for path in set(SHARED_MEMORY.iterdir()) - before} - in_use(SHARED_MEMORY):
        assert time.monotonic() < end, left  # what other tests are making at the moment is soon in use
        time.sleep(0.2)


def test_wrong_set_ups_start_no_rank(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """Each is one line in the job's log, and exit code 2, which nobody starts again."""
    cases = [
        (["data.global_batch_size=5"], {}, "data.global_batch_size 5 is not divisible by 2"),
        ([], {"UNIX_VENV": "/nowhere"}, "/nowhere/bin/python is missing"),
        ([], {"UNIX_CONTAINER": "docker:image"}, "write pyxis:IMAGE or apptainer:IMAGE"),
        ([], {"UNIX_CONTAINER": "apptainer:/nowhere.sif"}, "apptainer"),
    ]
    jobs = []
    for number, (words, environment, _) in enumerate(cases):
        config = night.write_config(tiny_data, tmp_path / f"run{number}", 10)
        jobs.append((submit(cluster, config, *words, **environment), config.with_suffix(".out")))
    for (job, out), (_, _, words) in zip(jobs, cases, strict=True):
        shown = cluster.finished(job)
        errors = [line for line in out.read_text().splitlines() if line.startswith("error: ")]
        assert shown["ExitCode"] == "2:0" and len(errors) == 1 and words in errors[0], out.read_text()
        assert shown["Restarts"] == "0" and not list(out.parent.glob(f"{out.stem}/logs/*"))


@pytest.fixture
def other_data_on_node2(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """Node 2 sees another manifest in the place of the data's: a file system of its own."""
    (daemon,) = cluster.folder.glob("run/slurmd.node2.pid")
    manifest = tiny_data.train / "manifest.json"
    other = tmp_path / "manifest.json"
    other.write_text(manifest.read_text() + "\n")
    inside = ["nsenter", f"--target={daemon.read_text().strip()}", "--mount"]
    subprocess.run([*inside, "mount", "--bind", str(other), str(manifest)], check=True)
    yield
    subprocess.run([*inside, "umount", str(manifest)], check=True)


def test_a_bad_node_is_named_and_left_out(cluster: Cluster, tiny_data: TinyData, tmp_path, other_data_on_node2):
    run = tmp_path / "run"
    config = night.write_config(tiny_data, run, 5)
    job = submit(cluster, config)
    shown = cluster.finished(job)
    out = config.with_suffix(".out").read_text()
    assert shown["JobState"] == "COMPLETED", out
    assert "node node2 is left out: it sees other data than most" in out
    assert [(entry["nodes"], entry["decision"]) for entry in ended(run)] == [
        (["node1", "node2"], "restart"),
        (["node1"], "done"),
    ]


def test_a_night_in_two_minutes(cluster: Cluster, tiny_data: TinyData, undisturbed: Path, tmp_path):
    """Part of tests/slurm/night.py: its faults that take least time, one that changes the number of ranks among them."""
    try:
        report = night.spend(
            cluster,
            tiny_data,
            tmp_path,
            ["pre-emption", "flipped byte in the newest checkpoint", "power-cut node"],
            STEPS,
            ENGINE,
            HANG,
            undisturbed,
        )
    finally:
        cluster.minislurm("join-node", 2)
    assert report["attempts"] == 4 and report["steps"] == STEPS
    assert [told["ranks_after"] for told in report["faults"]] == [4, 4, 2]
    assert (
        report["faults"][1]["recomputed"] >= 5
    )  # those between two checkpoints, since the newer one is damaged, and more
    assert report["equal_to_the_last_bit"] >= report["ranks_changed_after_step"] > 20
