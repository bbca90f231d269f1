"""The plan of a run, and set-ups that are refused before anything is queued or started: one line each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pretrain.config import load_config
from pretrain.process_ranks import check_world
from slurm import submit
from tests.commands import CommandServer, Finished, assert_refused
from tests.pretrain.tiny_run import TinyData, config_values, write_config
from tests.tokenization.store import serving, unavailable

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(ROOT.glob("slurm/*.sbatch"))


@pytest.fixture
def config(tiny_data: TinyData, tmp_path) -> Path:
    values = config_values(tiny_data, tmp_path / "run")
    values["data"]["global_batch_size"] = values["log"]["heldout_rows"] = 8
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def plan(commands: CommandServer, config: Path, *words: object, nodes: int = 2, each: int = 2) -> Finished:
    return commands.run("slurm/plan.py", "--config", config, "--nodes", nodes, "--ranks-per-node", each, *words)


def test_the_plan_says_what_would_run(commands, config):
    done = plan(commands, config)
    assert done.code == 0, done.err
    for words in (
        "2 x 2 processes = 4",
        "tensor 1 x pipeline 1 x data 4",
        "8 rows a step, 2 on each",
        "1,024 a step, 7,168 in",
        "starts from random weights",
        "GiB on a device: ",
    ):
        assert words in done.out
    done = plan(commands, config, "--for-script", "--no-data", nodes=4)
    assert done.out == f"4 {config.with_suffix('')}\n"


def test_a_batch_that_does_not_divide_is_refused_but_a_run_that_has_begun_goes_on_with_less(commands, config):
    assert_refused(
        plan(commands, config, "--for-script", nodes=3), "3 nodes x 2", "data.global_batch_size 8", "6 data-parallel"
    )
    (config.with_suffix("") / "attempt.json").parent.mkdir()
    (config.with_suffix("") / "attempt.json").write_text("{}")
    done = plan(commands, config, "--for-script", nodes=3)
    assert done.out.startswith("2 ") and "1 of 3 nodes stay idle" in done.err
    assert_refused(plan(commands, config, "--for-script", each=3, nodes=2), "data.global_batch_size 8")


def test_a_store_that_is_away_refuses_a_run_that_has_not_begun_and_no_other(commands, config, tiny_data, tmp_path):
    """After a requeue the ranks ask it again: a job must not end over what may be back in a minute."""
    with serving(tiny_data.train.parent) as store:
        store.fault = unavailable
        words = ["--for-script", f"data.sources=[{{path: '{store.url}/train'}}]", f"data.cache={tmp_path / 'cache'}"]
        asked = ["slurm/plan.py", "--config", config, "--nodes", 2, "--ranks-per-node", 2, *words]
        done = commands.run(*asked, hook=("tests.tokenization.store", "short_pauses"))
        assert done.code == 75 and "does not answer" in done.err and done.err.count("\n") == 1, done.err
        (config.with_suffix("") / "attempt.json").write_text("{}")
        done = commands.run(*asked, hook=("tests.tokenization.store", "short_pauses"))
        assert (done.code, done.out) == (0, f"2 {config.with_suffix('')}\n"), done.err


def test_wrong_set_ups_are_one_line_each(commands, config, tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tokenizer").mkdir()
    text = (tiny_data.tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    cases = [
        (["data.sources=[{path: nowhere}]"], "nowhere"),
        ([f"data.tokenizer={tmp_path / 'tokenizer'}"], "is not the tokenizer that made the shards"),
        (["data.tokenizer=nowhere"], "nowhere/tokenizer.json is missing"),
        ([f"run.folder={tmp_path / 'file' / 'run'}"], "cannot be written"),
        (["run.init_from=nowhere"], "run.init_from nowhere"),
        (["parallel.tensor=3"], "4 processes cannot hold parallel.tensor 3"),
        (["optim.learning_rate=1"], "unknown key optim.learning_rate"),
        (["run.engine=zero3", "parallel.pipeline=2"], "run.engine zero3 has no pipeline stages"),
    ]
    for overrides, words in cases:
        assert_refused(plan(commands, config, *overrides), words)
    assert_refused(plan(commands, tmp_path / "nothing.yaml"), "cannot be read")


def test_a_run_that_cannot_go_on_is_refused(commands, tiny_data, tmp_path):
    run = tmp_path / "run"
    config = write_config(tiny_data, run)
    assert commands.run("pretrain/train.py", "--config", config, "run.steps=2").code == 0
    one = {"nodes": 1, "each": 1}
    assert "goes on from step_00000002" in plan(commands, config, **one).out
    assert_refused(plan(commands, config, "model.deep=2", **one), "checkpoint of another model")
    assert_refused(plan(commands, config, "run.seed=9", **one), "trained on other rows")
    assert_refused(plan(commands, config, "run.resume=never", **one), "run.resume is never")
    shutil.copytree(tiny_data.train, tmp_path / "other")
    assert (
        plan(commands, config, f"data.sources=[{{path: {tmp_path / 'other'}}}]", **one).code == 0
    )  # same data elsewhere


def test_submit_shows_without_submitting(commands, config):
    script = ROOT / "slurm/pretrain_3b.sbatch"

    def run(script: Path, *options: object) -> Finished:
        return commands.run("slurm/submit.py", "--config", config, "--dry-run", *options, script, "optim.lr=1e-4")

    done = run(script, "--nodes", "1-2", "--gpus-per-node", 4)
    assert done.code == 0, done.err
    assert "2 x 4 processes = 8" in done.out and "zero3, fp32" in done.out
    assert f"sbatch --nodes=1-2 --gpus-per-node=4 {script} optim.lr=1e-4" in done.out
    assert_refused(run(script), "8 nodes x 8 processes")
    assert_refused(run(ROOT / "slurm/convert_to_hf.sbatch"), "does not train")
    cases = [
        (["--nodes", "many"], "--nodes many"),
        (["--nodes", "4-2"], "--nodes 4-2"),
        (["--gpus-per-node", 0], "--gpus-per-node 0"),
        (["--gpus-per-node=-2"], "--gpus-per-node -2"),
        (["--gpus-per-node", "h100:x"], "--gpus-per-node h100:x"),
        (["--nodes", 2, "--gpus-per-node", 2, "--time", "soon"], "--time soon"),
        (["--nodes", 2, "--gpus-per-node", 2, "--time", 5], "told to save 600 s before"),
    ]
    for options, words in cases:
        assert_refused(run(script, *options), words)
    assert run(script, "--nodes", 2, "--gpus-per-node", "h100:4", "--time", "1-0").code == 0
    assert_refused(run(Path("/bin/ls")), "/bin/ls: is no text")


def test_shipped_scripts_are_thin_and_whole():
    assert {path.name for path in SHIPPED} >= {
        "pretrain_3b.sbatch",
        "pretrain_1b5.sbatch",
        "sft_3b.sbatch",
        "sft_edit_3b.sbatch",
        "shard_images.sbatch",
        "convert_to_hf.sbatch",
        "evaluate.sbatch",
    }
    for path in SHIPPED:
        text = path.read_text(encoding="utf-8")
        doing = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert len(doing) == 2 and "slurm/job.sh" in doing[0], path
        if doing[1].startswith("train "):
            options, config, replaced = submit.options_of(path)
            loaded = load_config(ROOT / config, replaced)
            assert loaded.run.engine == "zero3" and Path(config).stem == path.stem
            check_world(loaded, int(options["nodes"]) * int(options["gpus-per-node"]))  # the batch divides over them
            assert {"nodes", "gpus-per-node", "signal", "time"} <= set(options) and (ROOT / config).is_file()
        else:
            assert (ROOT / doing[1].split()[1]).is_file()
