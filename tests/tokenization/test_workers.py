"""Many workers without a coordinator: each file once, the same bytes as one worker, killed and started as one likes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.tokenization.corpora import Command, child, contents, error_line, folder_corpus, tar_corpus
from tokenization import shard_images
from tokenization.parts import PARTS, read_file_record, write_file_record
from tokenization.worker_plan import slot_of


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, vq_folder: Path, tokenizer_folder: Path) -> Path:
    """Nine tars and a folder, and their dataset made by one worker."""
    folder = tmp_path_factory.mktemp("workers")
    inputs = [tar_corpus(folder / "tars", 52, per_tar=6), folder_corpus(folder / "folder", 5)]
    assert (
        shard_images.main(Command(vq_folder, tokenizer_folder).arguments(inputs, folder / "one", samples_per_part=4))
        == 0
    )
    return folder


def inputs(pristine: Path) -> list[Path]:
    return [pristine / "tars", pristine / "folder"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_workers_make_the_bytes_of_one(command: Command, pristine: Path, tmp_path: Path, order: tuple[int, ...]):
    for number, worker in enumerate(order):
        code, stderr = command(inputs(pristine), tmp_path / "out", samples_per_part=4, job_index=worker, job_count=3)
        assert code == 0 and f"as worker {worker} of 3" in stderr
        assert ("files are left, for other workers" in stderr) == (number < 2)
    assert contents(tmp_path / "out") == contents(pristine / "one")


def test_killed_and_started_with_other_numbers_of_workers(command: Command, pristine: Path, tmp_path: Path):
    output, moments = tmp_path / "out", random.Random(1)
    killed = 0
    while killed < 6:
        count = moments.choice([1, 2, 3])
        started = []
        for worker in range(count):
            arguments = command.arguments(
                inputs(pristine), output, samples_per_part=4, job_index=worker, job_count=count, workers=worker
            )
            started.append(child(lambda arguments=arguments: shard_images.main(arguments)))
        time.sleep(moments.uniform(0.1, 0.7))
        for process in started:
            os.kill(process, signal.SIGKILL)
        killed += sum(os.WIFSIGNALED(os.waitpid(process, 0)[1]) for process in started)
        if (output / "manifest.json").exists():
            assert contents(output) == contents(pristine / "one")
            shutil.rmtree(output)
    assert command(inputs(pristine), output, samples_per_part=4)[0] == 0
    assert contents(output) == contents(pristine / "one")


def test_two_workers_on_one_file_are_no_danger(command: Command, pristine: Path, tmp_path: Path):
    """As when an old job still runs when the new one with another number of workers begins."""
    output = tmp_path / "out"
    slots = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    started = []
    for index, count in slots:
        arguments = command.arguments(inputs(pristine), output, samples_per_part=4, job_index=index, job_count=count)
        started.append(child(lambda arguments=arguments: shard_images.main(arguments)))
    assert [os.waitpid(process, 0)[1] for process in started] == [0] * 5
    assert contents(output) == contents(pristine / "one")


def test_one_worker_and_a_job_array_keep_out_of_each_others_way(command: Command, pristine: Path, tmp_path: Path):
    import fcntl

    output = tmp_path / "out"
    output.mkdir()
    other = os.open(output, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    assert "another process is writing to it" in error_line(command(inputs(pristine), output)[1])
    assert command(inputs(pristine), output, samples_per_part=4, job_index=0, job_count=9)[0] == 0
    os.close(other)


def test_a_merge_counts_what_it_merges(command: Command, pristine: Path, tmp_path: Path):
    output = shutil.copytree(pristine / "one", tmp_path / "out")
    (output / "manifest.json").unlink()
    record = read_file_record(output, 3)
    shard = output / PARTS / record.parts[0].name / "shard.00000.mds"
    shutil.copy(shard, tmp_path / "kept")
    shard.write_bytes(shard.read_bytes()[:-1])
    code, stderr = command(
        inputs(pristine), output, samples_per_part=4, job_index=0, job_count=4
    )  # file 3 is not its own
    assert code == 1 and "shard.00000.mds" in error_line(stderr) and "run the same command again" in error_line(stderr)
    shutil.copy(tmp_path / "kept", shard)
    counts = record.parts[0].counts | {"documents": record.parts[0].counts["documents"] - 1}
    parts = [type(record.parts[0])(**vars(record.parts[0]) | {"counts": counts}), *record.parts[1:]]
    write_file_record(output, type(record)(**vars(record) | {"parts": parts}))
    code, stderr = command(inputs(pristine), output, samples_per_part=4, job_index=0, job_count=4)
    assert code == 1 and "length indices of the parts do not fit" in error_line(stderr)
    assert not (output / "manifest.json").exists()


def test_the_plan_is_a_function_of_the_listing(command: Command, pristine: Path, tmp_path: Path):
    for name in ("a", "b"):
        command(inputs(pristine), tmp_path / name, samples_per_part=4, job_index=8, job_count=50)
    plans = [(tmp_path / name / "job.json").read_bytes() for name in ("a", "b")]
    assert plans[0] == plans[1] == (pristine / "one/job.json").read_bytes()
    listed = json.loads(plans[0])["inputs"][0]["files"]
    assert [entry["name"] for entry in listed] == sorted(path.name for path in (pristine / "tars").iterdir())
    assert all(entry["bytes"] == (pristine / "tars" / entry["name"]).stat().st_size for entry in listed)


def test_who_a_worker_is():
    array = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_MAX": "8",
        "SLURM_ARRAY_TASK_STEP": "1",
    }
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
    assert slot_of({}, None, None) == (0, 1)
    assert slot_of({}, 2, 5) == (2, 5)
    assert slot_of(array, None, None) == (2, 4)
    assert slot_of(array | step, None, None) == (11, 16)
    assert slot_of(step, None, None) == (3, 4)
    assert slot_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None, None) == (0, 1)  # a batch script, outside srun
    assert slot_of({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2) == (3, 4)
    assert slot_of(array | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "2"}, None, None) == (1, 2)
    assert sorted(
        slot_of(array | step | {"SLURM_ARRAY_TASK_ID": str(t), "SLURM_PROCID": str(r)}, None, None)[0]
        for t in range(5, 9)
        for r in range(4)
    ) == list(range(16))
    with pytest.raises(UserError, match="give --job-index and --job-count"):
        slot_of(array | {"SLURM_ARRAY_TASK_MAX": "12"}, None, None)  # tasks 5, 7, 8 and 12 again, say
    with pytest.raises(UserError, match="--job-index 4 is not below --job-count 4"):
        slot_of({}, 4, 4)
