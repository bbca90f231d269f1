"""A run's checkpoints are evaluated while it trains, whatever becomes of them; results and curves are in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pretrain.config import dump_config, load_config
from pretrain.config_names import FORMER_NAMES
from pretrain.system.errors import UserError
from tests.command_server import FORKED
from tests.commands import CommandServer, Finished, assert_refused
from tests.pretrain.tiny_run import STEPS, write_config
from tools.evaluation import of_run
from tools.evaluation.record import make_record, write_record

HELDOUT = "--task heldout"
SCRIPT = "tools/evaluate_run.py"


def evaluate(commands: CommandServer, *words: object) -> Finished:
    """The command, whose evaluations are forked from it."""
    return commands.run(SCRIPT, *words, hook=FORKED)


@pytest.fixture(scope="module")
def trained(commands, tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("of_run") / "run"
    done = commands.run("pretrain/train.py", "--config", write_config(tiny_data, folder), "log.heldout_every=2")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / of_run.CURVES))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_checkpoint_has_the_losses_that_training_wrote_and_a_curve(commands, run):
    done = evaluate(commands, "--run", run, HELDOUT)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"step_{STEPS:08d} heldout: done"  # the newest first
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["heldout/loss"] for line in lines if "heldout/loss" in line}
    found = {int(path.parent.name): json.loads(path.read_text()) for path in run.glob("evaluations/*/heldout.json")}
    assert set(found) == {6, STEPS}  # those that the run keeps
    for step, record in found.items():
        assert record["scores"]["loss"] == pytest.approx(expected[step], abs=1e-6)
        assert record["model"]["step"] == step
    steps, values = zip(*curves(run)["heldout/loss"], strict=True)
    assert steps == (6, STEPS) and values == pytest.approx([expected[6], expected[STEPS]], abs=1e-5)
    assert not (run / of_run.HELD).exists()
    before = {path: path.stat().st_mtime_ns for path in run.glob("evaluations/*/*.json")}
    done = evaluate(commands, "--run", run, HELDOUT)
    assert done.code == 0 and done.out.startswith("2 results are there already") and done.out.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("evaluations/*/*.json")}


def test_pictures_are_of_an_export_that_is_removed_again(commands, run, tmp_path):
    prompts = tmp_path / "metadata.jsonl"
    prompts.write_text('{"tag": "single_object", "include": [{"class": "sun", "count": 1}], "prompt": "a sun"}\n')
    words = f"--task geneval --prompts-file {prompts}"
    done = evaluate(commands, "--run", run, "--step", STEPS, words)
    assert done.code == 0, done.err
    folder = run / "evaluations" / f"{STEPS:08d}"
    assert len(list(folder.glob("images/00000/samples/*.png"))) == 4 and (folder / "geneval.json").is_file()
    assert not (run / of_run.HELD).exists()


def test_a_checkpoint_stays_whole_while_training_removes_it(run):
    checkpoint = run / "checkpoints" / f"step_{STEPS:08d}"
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    with of_run.held(checkpoint, run) as copy:
        shutil.rmtree(checkpoint)
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    with of_run.held(checkpoint, run) as copy:
        assert copy is None
    assert not (run / of_run.HELD).exists()


def test_two_evaluators_share_the_checkpoints_out(run):
    folder = run / "evaluations" / f"{STEPS:08d}"
    folder.mkdir(parents=True)
    with of_run.sole_evaluator(folder) as first, of_run.sole_evaluator(folder) as second:
        assert first and not second
        of_run.evaluate_all(run, of_run.parse([HELDOUT]), {STEPS}, set())
    assert not list(folder.glob("*.json"))


def test_following_ends_with_the_run_and_a_failure_is_told(commands, run, tiny_data):
    damaged = run / "checkpoints" / "step_00000006"
    next(damaged.glob("__*")).write_bytes(b"")
    done = evaluate(commands, "--run", run, "--follow", HELDOUT)
    assert done.code == 1 and "step 6 heldout" in done.err and "Traceback" not in done.err
    assert (run / "evaluations" / f"{STEPS:08d}" / "heldout.json").is_file()
    assert "the checkpoint is damaged" in (run / "evaluations/00000006/log.txt").read_text()


def test_a_damaged_result_is_named(tmp_path):
    path = tmp_path / "evaluations/00000002/heldout.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=f"{path}: cannot be read as JSON .*: remove it"):
        of_run.scores_by_step(tmp_path)


def test_results_that_are_there_are_told(tmp_path):
    asked = [of_run.Asked("heldout", ())]
    assert of_run.there_already(tmp_path, asked, set()) == ""
    for step in ("00000002", "00000004"):
        (tmp_path / "evaluations" / step).mkdir(parents=True)
        record = make_record("heldout", 1, 1, model={}, data={}, settings={}, scores={"loss": 1.0})
        write_record(tmp_path / "evaluations" / step, record)
    told = of_run.there_already(tmp_path, asked, set())
    assert told.startswith("2 results are there already") and "00000004/heldout.json: remove the file" in told
    assert of_run.there_already(tmp_path, asked, {2}).startswith("1 result is there")


def test_bad_input_is_one_line(commands, run, tmp_path):
    assert_refused(evaluate(commands, "--run", tmp_path, HELDOUT), "has no config.yaml")
    assert_refused(evaluate(commands, "--run", run, HELDOUT, "--step", 5), "has no checkpoint of step 5")
    assert_refused(evaluate(commands, "--run", run, "--task heldout --model x"), "leave out --model")
    assert_refused(evaluate(commands, "--run", run, "--task heldout --output x"), "leave out --model", "--output")
    assert_refused(evaluate(commands, "--run", run, "--task 'heldout"), "No closing quotation", "quote the words")
    assert_refused(evaluate(commands, "--run", run, "--task geneval"), "needs --prompts-file")
    assert_refused(evaluate(commands, "--run", run, HELDOUT, HELDOUT), "there twice")


def test_a_run_that_is_followed_is_not_told_of_its_former_keys_at_each_look(tmp_path, capsys):
    """`--follow` reads the configuration again and again; a command that works by it tells them."""
    former, text = next(iter(FORMER_NAMES)), dump_config(load_config("pretrain/configs/demo.yaml"))
    text = text.replace(FORMER_NAMES[former], former.partition(".")[2])
    (tmp_path / "config.yaml").write_text(text)
    assert not of_run.finished(tmp_path) and capsys.readouterr().err == ""
    load_config(tmp_path / "config.yaml")
    assert len(capsys.readouterr().err.splitlines()) == 1
