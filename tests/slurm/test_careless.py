"""A careless user's jobs on a cluster: what is not meant is refused or told, and nothing is called done that is not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from slurm.attempt import ended, last_step
from tests.pretrain.tiny_run import TinyData, checkpoint_names
from tests.slurm import night
from tests.slurm.cluster import Cluster

SCRIPT = "slurm/pretrain_3b.sbatch"


def submit(cluster: Cluster, config: Path, out: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    """A job of one node and one rank."""
    return cluster.submit(
        "--nodes=1",
        "--gpus-per-node=1",
        f"--output={out}",
        *options,
        SCRIPT,
        *words,
        UNIX_CONFIG=str(config),
        **{**night.SETTINGS, "UNIX_RANKS_PER_NODE": "1"},
    )


def test_a_run_folder_with_signs_that_srun_replaces(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """srun read %j in the folder's name as the job's number, found no such folder, and the job was called done."""
    run = tmp_path / "50%j of it" / "run"
    run.parent.mkdir()
    config = night.write_config(tiny_data, run, 2)
    shown = cluster.finished(submit(cluster, config, tmp_path / "out", options=("--time=UNLIMITED",)))
    text = (tmp_path / "out").read_text()
    assert shown["JobState"] == "COMPLETED" and "time limit" not in text and "date:" not in text, text
    assert checkpoint_names(run) == ["step_00000002"] and (run / "logs/attempt_0001/rank_0000.log").stat().st_size > 0
    again = cluster.finished(submit(cluster, config, tmp_path / "again"))
    assert again["JobState"] == "COMPLETED" and "2 of 2 steps are done" in (tmp_path / "again").read_text()
    assert [entry["decision"] for entry in ended(run)] == ["done", "done"]


def test_a_second_job_in_a_run_folder_is_refused(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """They took the folder from each other without end, and each lost the steps since its last checkpoint."""
    run = tmp_path / "run"
    config = night.write_config(tiny_data, run, 100_000)
    first = submit(cluster, config, tmp_path / "first.out")
    cluster.wait(first, lambda shown: last_step(run) >= 3)
    second = submit(cluster, config, tmp_path / "second.out")
    assert cluster.finished(second)["ExitCode"] == "2:0"
    (error,) = [line for line in (tmp_path / "second.out").read_text().splitlines() if line.startswith("error: ")]
    assert f"job {first}" in error and str(run) in error and "scancel" in error and "run.folder" in error
    step = last_step(run)
    cluster.wait(first, lambda shown: last_step(run) > step)  # it was not disturbed
    assert ended(run) == []
    cluster.run("scancel", first)
    third = submit(cluster, config, tmp_path / "third.out", "run.steps=99000")  # at once: it lets the first save
    assert cluster.finished(first)["JobState"] == "CANCELLED"
    cluster.wait(third, lambda shown: len(ended(run)) == 1 and last_step(run) > ended(run)[0]["to_step"] + 2)
    assert [(entry["job"], entry["decision"]) for entry in ended(run)] == [(first, "stop")]
    cluster.run("scancel", third)
    cluster.finished(third)
    resumed = [entry["resumed_step"] for entry in ended(run)]
    assert resumed == [None, ended(run)[0]["saved_step"]] and ended(run)[0]["to_step"] == ended(run)[0]["saved_step"]


def test_a_check_of_nodes_that_cannot_run_is_not_passed(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """A damaged record among those of its first attempt: ranks were started on nodes that were not judged."""
    run = tmp_path / "run"
    (run / "preflight/attempt_0001").mkdir(parents=True)
    (run / "preflight/attempt_0001/node_damaged.json").write_text("{")
    config = night.write_config(tiny_data, run, 2)
    shown = cluster.finished(submit(cluster, config, tmp_path / "out"))
    text = (tmp_path / "out").read_text()
    assert shown["JobState"] == "COMPLETED", text
    assert [entry["decision"] for entry in ended(run)] == ["restart", "done"], text
    assert "the check of the nodes failed" in ended(run)[0]["reason"] and "node_damaged.json: is no record" in text


def test_a_time_limit_within_the_warning_is_told(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """Each start of such a job saves and leaves at once."""
    run = tmp_path / "run"
    config = night.write_config(tiny_data, run, 2)
    job = submit(cluster, config, tmp_path / "out", options=("--time=5",))
    end = time.monotonic() + 300
    while "warning: the time limit" not in ((tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""):
        assert time.monotonic() < end, (tmp_path / "out").read_text()
        time.sleep(0.5)
    cluster.run("scancel", job)
    cluster.finished(job)


def test_a_job_that_is_cancelled_as_it_starts_stays_cancelled(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """It found no node of its own any more, and put itself back into the queue."""
    config = night.write_config(tiny_data, tmp_path / "run", 2)
    for number, moment in enumerate((0, 0.1, 0.2, 0.4)):
        out = tmp_path / f"out{number}"
        job = submit(cluster, config, out)
        end = time.monotonic() + 300
        while "started by Slurm" not in (out.read_text() if out.exists() else ""):
            assert time.monotonic() < end, cluster.show(job)
            time.sleep(0.02)
        time.sleep(moment)
        cluster.run("scancel", job)
        shown = cluster.finished(job)
        assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0"), out.read_text()


def test_slurm_is_asked_before_the_queue(cluster: Cluster, tiny_data: TinyData, tmp_path):
    """Partitions and nodes that do not exist, which waited in the queue for ever."""
    config = night.write_config(tiny_data, tmp_path / "run", 2)
    command = [sys.executable, "slurm/submit.py", "--dry-run", "--config", str(config), "--gpus-per-node", "2"]
    assert "to start at" in cluster.run(*command, "--nodes", "2", SCRIPT)
    for nodes, partition in (("4", "batch"), ("2", "nowhere")):
        words = ["bash", "-c", '! SBATCH_PARTITION="$0" "$@" 2>&1', partition, *command, "--nodes", nodes, SCRIPT]
        said = cluster.run(*words, "data.global_batch_size=8", "log.heldout_rows=8")
        assert "error: Slurm would not take the job" in said.splitlines()[-1]
