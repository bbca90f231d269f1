"""The training command: what it leaves behind, and one line for everything that a user can get wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain import checkpoint, machine
from pretrain.config import load_config
from pretrain.run_folder import hold, open_run
from pretrain.schedule import learning_rate
from tests.commands import ROOT, CommandServer, Finished, assert_refused
from tests.pretrain.tiny_run import STEPS, TinyData, checkpoint_names, read_metrics, write_config

LAYERS, HEAD = (
    4 * (32 * 64 + 32 * 32 + 3 * 32 * 48),
    32 * 480,
)  # weights of the tiny model's products, the head's at most


def train(server: CommandServer, data: TinyData, folder: Path, *overrides: str) -> Finished:
    return server.run("pretrain/train.py", "--config", write_config(data, folder), *overrides)


def flip_a_byte(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Of all files but the one that says who came last."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "owner.json"}


@pytest.fixture(scope="module")
def finished(commands, tiny_data, tmp_path_factory) -> Path:
    """A run folder with everything that a run can write."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = train(
        commands,
        tiny_data,
        folder,
        "log.tensorboard=true",
        "log.samples_every=4",
        "log.profile_steps=2",
        "log.sample_prompts=['keycap: 0', 红心]",
        "run.precision=bf16",
        "model.flavour=qwen3",
    )
    assert (done.code, done.err) == (0, "")
    return folder


def test_a_run_folder_says_what_was_run(finished):
    assert load_config(finished / "config.yaml") == load_config(
        finished.with_suffix(".yaml"),
        [
            "log.tensorboard=true",
            "log.samples_every=4",
            "log.profile_steps=2",
            "log.sample_prompts=['keycap: 0', 红心]",
            "run.precision=bf16",
            "model.flavour=qwen3",
        ],
    )
    (started,) = [json.loads(line) for line in (finished / "starts.jsonl").read_text().splitlines()]
    assert started["command"][0].endswith("pretrain/train.py") and "--config" in started["command"]
    assert started["python"] == sys.version.split()[0] and started.keys() >= {"time", "commit", "changed_files"}
    (found,) = started["machines"]
    assert found["ranks"] == [0] and found["threads"] == 1 and found["libraries"]["torch"] == torch.__version__
    assert found["processor"] and found["capability"] == torch.backends.cpu.get_cpu_capability()


def test_each_update_has_the_learning_rate_of_its_step(finished):
    """The first one that of step 0, so that a run ends before the last value of the schedule."""
    config = load_config(finished / "config.yaml")
    optim = config.optim
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["train/learning_rate"]) for line in lines if "train/learning_rate" in line]
    expected = [
        learning_rate(
            step - 1,
            peak=optim.lr,
            final=optim.final_lr,
            warmup=optim.warmup_steps,
            steps=config.run.steps,
            decay=optim.decay,
        )
        for step, _ in found
    ]
    assert [rate for _, rate in found] == pytest.approx(expected, rel=1e-12) and len(set(expected)) > 1


def test_a_checkpoint_says_what_the_data_teaches(finished):
    """The tiny corpus has captioned pictures, and texts, which teach none of the skills that a server offers."""
    newest = max((finished / "checkpoints").glob("step_*[0-9]"))
    assert json.loads((newest / "state.json").read_text())["skills"] == ["caption", "draw"]


def test_data_that_measure_or_draw_with_something_else_are_told(commands, tiny_data, tmp_path):
    """Held-out data that are trained on, and another image tokenizer than that of the shards, before a step is made."""
    same = (f"data.heldout={tiny_data.train}", f"data.vq={tiny_data.other_vq}", "data.drop_both=0.5", "run.steps=1")
    done = train(commands, tiny_data, tmp_path / "run", *same)
    assert done.code == 0, done.err
    logged = (tmp_path / "run" / "logs" / "attempt_0000" / "rank_0000.jsonl").read_text()
    for told in (
        "is trained on too",
        "data.vq is called 'tiny-1', and the shards were made with 'tiny-0'",
        "no source has",
    ):
        assert "warning: " in done.out and told in done.out and told in logged
    done = train(commands, tiny_data, tmp_path / "other", "run.steps=1", "optim.warmup_steps=0")
    assert done.code == 0 and "warning" not in done.out


def test_some_steps_are_traced_when_asked_for(finished):
    """The first two of a start are left out. Chrome's trace format: events with a name, a begin and a duration."""
    folder = finished / "profile"
    assert {path.name for path in folder.iterdir()} == {"steps_3-4.json", "steps_3-4.txt"}
    events = json.loads((folder / "steps_3-4.json").read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert len(products) > 20 and all(event["dur"] >= 0 for event in products)
    table = (folder / "steps_3-4.txt").read_text()
    assert "Self CPU" in table and "aten::" in table


def test_a_machine_without_git_trains_too(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    open_run(load_config(finished / "config.yaml"), ["train.py"], tmp_path / "run", [machine.describe()])
    started = json.loads((tmp_path / "run/starts.jsonl").read_text())
    assert started["commit"] == "" and started["changed_files"] == []


def test_metrics_have_the_keys_that_people_plot(finished):
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in metrics if "train/loss" in line]
    heldout = [line for line in metrics if "heldout/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert [line["step"] for line in heldout] == [0, 3, 6, 7]
    for line in trained:
        assert line["train/rows"] == 2 * line["step"]
        tokens = line["train/tokens_text"], line["train/tokens_image"]
        mean = (line["train/loss_text"] * tokens[0] + line["train/loss_image"] * tokens[1]) / sum(tokens)
        assert line["train/loss"] == pytest.approx(mean)
        assert line["train/learning_rate"] > 0 and line["train/grad_norm"] > 0
        assert line["tok_per_sec_per_gpu"] > 0 and 0 <= line["data_wait_pct"] <= 100
        a_token = 1e12 * line["tflops_per_gpu"] / line["tok_per_sec_per_gpu"]  # as packed; heads are for targets alone
        assert 6 * LAYERS < a_token < 7 * LAYERS + 6 * HEAD and "mfu_pct" not in line
    assert all(line["peak_memory_gib"] > 0.05 for line in trained)
    for key in ("heldout/loss", "heldout/loss_text", "heldout/loss_image"):
        assert heldout[-1][key] < heldout[0][key] - 0.2
    assert list((finished / "tensorboard").glob("events.out.*"))


def test_samples_are_drawn_while_it_trains(finished):
    assert sorted(path.name for path in (finished / "samples").iterdir()) == ["step_00000004.png", "step_00000007.png"]
    with Image.open(finished / "samples/step_00000007.png") as sheet:
        assert sheet.width > 256 and len(sheet.convert("RGB").getcolors(2**20)) > 10


def test_a_checkpoint_holds_all_that_an_export_needs(finished, tiny_data):
    assert checkpoint_names(finished) == ["step_00000006", "step_00000007"]
    folder = checkpoint.folder_of(finished, STEPS)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_data.tokenizer / "tokenizer.json").read_bytes()
    assert json.loads((folder / "unix_prompts.json").read_text())["grid"] == [4, 4]
    model = json.loads((folder / "model.json").read_text())
    assert model["layer_kinds"] == ["separated", "shared", "shared", "separated"] and model["qk_norm"]
    assert model["codebook_size"] == 64 and model["vocab_size"] % 64 == 0
    state = checkpoint.read_state(folder)
    assert (state["step"], state["rows"], state["vq"]) == (STEPS, 2 * STEPS, str(tiny_data.vq))


def test_a_cold_start_from_elsewhere_and_a_stop_from_outside(tiny_data, tmp_path):
    """A process of its own from the first import on, and `kill` as a person types it."""
    config = write_config(tiny_data, tmp_path / "run")
    command = [sys.executable, str(ROOT / "pretrain/train.py"), "--config", str(config), "run.steps=100000"]
    process = subprocess.Popen(
        [*command, "checkpoint.every=100000", "log.heldout_every=0", "data.workers=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run/metrics.jsonl"
    try:
        end = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (name,) = checkpoint_names(tmp_path / "run")
    steps = int(name.removeprefix("step_"))
    assert f"{steps} of 100000 steps done; the same command goes on from here" in out
    (event,) = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"], event["signal"]) == ("interrupted and saved", steps, "SIGTERM")
    assert steps >= 2 and read_metrics(tmp_path / "run")[-1]["step"] == steps


def test_first_lines_say_what_a_run_is_about_and_a_resume_what_changed(commands, tiny_data, tmp_path):
    folder = tmp_path / "run"
    first = train(commands, tiny_data, folder)
    assert "million parameters; 2 rows of 128 tokens a step (256), 7 steps to do" in first.out
    assert first.out.count("a step takes ") == 1 and " to go" in first.out and "settings" not in first.out
    second = train(commands, tiny_data, folder, "run.steps=8", "optim.lr=0.5", "data.global_batch_size=4")
    assert second.code == 0
    assert (
        "other settings than at the last start: run.steps 8 (was 7), data.global_batch_size 4 (was 2), optim.lr 0.5 (was 0.01)\n"
        in second.out
    )


def test_what_the_command_line_gets_wrong(commands, tiny_data, tmp_path):
    folder = tmp_path / "run"
    assert_refused(train(commands, tiny_data, folder, "optim.lrr=1"), "optim.lrr", "optim.lr")
    path = folder.with_suffix(".yaml")
    path.write_text(path.read_text().replace("sequence_length", "row_lenght"))
    done = commands.run("pretrain/train.py", "--config", path)
    assert_refused(done, str(path), "data.row_lenght", "did you mean data.sequence_length")
    assert_refused(commands.run("pretrain/train.py", "--config", tmp_path / "no.yaml"), "no.yaml")
    assert commands.run("pretrain/train.py").code == 2
    assert not folder.exists()


def test_a_run_that_cannot_be_set_up(commands, tiny_data, tmp_path):
    """Folders that are not there or do not belong together: nothing is written for any of them."""
    folder = tmp_path / "run"
    other_tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tiny_data.tokenizer, other_tokenizer)
    with open(other_tokenizer / "tokenizer.json", "a") as file:
        file.write("\n")
    for override, *parts in [
        (f"data.sources=[{{path: {tmp_path / 'nowhere'}}}]", "nowhere"),
        (f"data.heldout={tmp_path / 'nowhere'}", "nowhere"),
        (f"data.tokenizer={tmp_path / 'nowhere'}", "nowhere/tokenizer.json"),
        (f"data.tokenizer={other_tokenizer}", str(other_tokenizer), "not the tokenizer that made the shards"),
        ("data.sequence_length=102", "sequence_length 102"),
        ("data.sequence_length=32", "raise data.sequence_length"),
        ("model.shallow=9", "9 shallow"),
        ("model.num_key_value_heads=3", "num_key_value_heads 3"),
        ("model.image_token_offset=300", "image_token_offset 300"),
    ]:
        assert_refused(train(commands, tiny_data, folder, override), *parts)
    assert not folder.exists()


def test_a_model_that_no_memory_holds_is_one_line(commands, tiny_data, tmp_path):
    """A slip of the keyboard, or the 3B on a laptop: torch's traceback named neither the run nor a remedy."""
    slips = ("model.image_token_offset=1e8", "model.hidden_size=1e6", "data.sequence_length=1e6")
    done = train(commands, tiny_data, tmp_path / "run", *slips)
    assert done.code == 1 and len(done.err.splitlines()) == 1, done.err
    assert "rank 0 has no memory left" in done.err and "tools/plan_parallel.py" in done.err
    assert "times all documents together" in done.out  # told before the memory is asked for
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_train_into_one_folder(commands, tiny_data, tmp_path):
    folder = tmp_path / "run"
    with hold(folder):
        assert_refused(train(commands, tiny_data, folder), str(folder), "another process")
        assert [path.name for path in folder.iterdir()] == ["lock"]
    assert train(commands, tiny_data, folder, "run.steps=1").code == 0


def test_gradients_that_are_not_finite_end_the_run_in_one_line(commands, tiny_data, tmp_path):
    """From its first steps on, so that there is nothing to go back to."""
    folder = tmp_path / "run"
    rates = ("optim.lr=1e30", "optim.warmup_steps=0", "optim.decay=constant")
    done = train(commands, tiny_data, folder, *rates, "resilience.bad_steps=3", "checkpoint.every=50")
    assert done.code == 1 and done.err.count("\n") == 1, done.err
    assert f"{folder}: stopped at step " in done.err and "no checkpoint" in done.err and "optim.lr" in done.err
    report = json.loads((folder / "trouble.json").read_text())
    assert len(report["bad"]) == 3 and report["error"] in done.err
    assert [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()] == [
        "bad step"
    ] * 3


def test_samples_need_the_image_tokenizer_of_the_shards(commands, tiny_data, tmp_path):
    drawing = ("log.samples_every=4", "log.sample_prompts=[a cat]")
    done = train(commands, tiny_data, tmp_path / "run", f"data.vq={tiny_data.other_vq}", *drawing)
    assert_refused(done, str(tiny_data.other_vq), "fingerprint", "data.vq")
    done = train(commands, tiny_data, tmp_path / "run", f"data.vq={tmp_path / 'nowhere'}", *drawing)
    assert_refused(done, "nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_with_a_flipped_byte_is_named(commands, tiny_data, tmp_path, workers):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_data.train, shards)
    damaged = flip_a_byte(next(shards.glob("parts/*/*.mds")))
    overrides = f"data.sources=[{{path: {shards}}}]", f"data.workers={workers}"
    assert_refused(train(commands, tiny_data, tmp_path / "run", *overrides), str(damaged))


def test_checkpoints_that_cannot_be_continued(commands, tiny_data, finished, tmp_path):
    """Another model, other rows, or damage: refused by name, and left as they are."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    same = ("run.precision=bf16", "model.flavour=qwen3", "run.steps=9")
    newest = str(checkpoint.folder_of(folder, STEPS))

    def refused(overrides, *parts: str) -> None:
        before = content(folder)
        assert_refused(train(commands, tiny_data, folder, *same, *overrides), *parts)
        assert content(folder) == before

    refused(["model.intermediate_size=64"], newest, "another model or precision")
    refused(["run.precision=fp32"], newest, "another model or precision", "bfloat16 there, [32] float32 here")
    for other_rows in ("run.seed=4", "data.sequence_length=256"):
        refused([other_rows], newest, "other rows")
    heldout_as_source = f"data.sources=[{{path: {tiny_data.heldout}}}]"
    refused([heldout_as_source], newest, "other rows")
    refused(["run.resume=never"], str(folder), "run.resume")
    for name in checkpoint_names(folder):
        (folder / "checkpoints" / name / "model.json").unlink()
    refused([], f"{folder}/checkpoints", "none of 2 checkpoints verifies")
