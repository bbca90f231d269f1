"""Pictures for GenEval, DPG-Bench and ImgEdit: as the scorers read them, whole or refused, the same each time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.tools.evaluation.prompt_files import DPG, GENEVAL, IMGEDIT, arguments_of, write_prompts
from tests.tools.tiny_export import write_export
from tools import evaluate
from tools.evaluation import pictures

TASKS = ("geneval", "dpg", "imgedit")
FILES = {
    "geneval": {f"{item:05d}/samples/{sample:04d}.png" for item in range(3) for sample in range(4)}
    | {f"{item:05d}/metadata.jsonl" for item in range(3)},
    "dpg": {f"{key}.png" for key in DPG},
    "imgedit": {f"{key}.png" for key in IMGEDIT},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("evaluate") / "export", max_position_embeddings=512)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> dict[str, Path]:
    return {task: write_prompts(tmp_path_factory.mktemp(task), task) for task in TASKS}


def run(*arguments: object) -> None:
    assert evaluate.main([*map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def made(export, prompts, tmp_path_factory) -> dict[str, Path]:
    """The output folder of each task, drawn three pictures at a time."""
    outputs = {task: tmp_path_factory.mktemp("made") / task for task in TASKS}
    for task, output in outputs.items():
        run("--model", export, "--output", output, *arguments_of(task, prompts[task]), "--batch-size", 3)
    return outputs


def result(output: Path) -> dict:
    (path,) = output.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def files(output: Path) -> dict[str, bytes]:
    folder = output / "images"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("task", TASKS)
def test_a_layout_is_what_the_scorer_reads_and_says_what_it_was_made_of(made, prompts, task):
    assert set(files(made[task])) == FILES[task]
    found = result(made[task])
    assert found["complete"] and found["items"]["done"] == {"geneval": 12, "dpg": 3, "imgedit": 3}[task]
    assert found["data"]["prompts"] == "other" and len(found["pictures"]["sha256"]) == 64
    settings = found["settings"]
    assert settings["dtype"] == "float32" and settings["guidance"] == 4.0 and settings["seed"] == 0
    assert ("image_guidance" in settings) == (task == "imgedit")
    assert settings["wording"] == ("{caption} Draw." if task != "imgedit" else settings["wording"])
    run("--output", made[task], *arguments_of(task, prompts[task]), "--check")


def test_metadata_is_the_items_line_and_a_grid_has_its_samples_row_by_row(made):
    for number, line in enumerate(GENEVAL):
        folder = made["geneval"] / "images" / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        drawn = made["geneval"] / "generations" / f"{number:04d}-02.png"
        assert (pixels(folder / "samples" / "0002.png") == pixels(drawn)).all()
    for number, key in enumerate(sorted(DPG)):
        grid = pixels(made["dpg"] / "images" / f"{key}.png")
        side = grid.shape[0] // 2
        for sample in range(4):
            top, left = sample // 2 * side, sample % 2 * side
            drawn = pixels(made["dpg"] / "generations" / f"{number:04d}-{sample:02d}.png")
            assert (grid[top : top + side, left : left + side] == drawn).all()


@pytest.mark.parametrize("task", TASKS)
def test_twice_is_the_same_and_another_batch_size_draws_the_same_pictures(made, export, prompts, tmp_path, task):
    again = tmp_path / "again"
    run("--model", export, "--output", again, *arguments_of(task, prompts[task]), "--batch-size", 3)
    assert (again / f"{task}.json").read_bytes() == (made[task] / f"{task}.json").read_bytes()
    assert files(again) == files(made[task])
    other = tmp_path / "other"
    run("--model", export, "--output", other, *arguments_of(task, prompts[task]), "--batch-size", 16)
    assert files(other) == files(made[task])
    there, here = result(made[task]), result(other)
    assert there["settings"].pop("batch_size") == 3 and here["settings"].pop("batch_size") == 16
    assert there == here
    if task == "geneval":
        run("--model", export, "--output", tmp_path / "seed", *arguments_of(task, prompts[task]), "--seed", 1)
        assert result(tmp_path / "seed")["pictures"]["sha256"] != there["pictures"]["sha256"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("harm", ["missing", "cut", "jpeg", "stray"])
def test_a_layout_that_is_not_whole_is_refused_by_the_name_of_what_is_wrong(made, prompts, tmp_path, task, harm):
    output = tmp_path / "out"
    shutil.copytree(made[task], output)
    name = sorted(name for name in FILES[task] if name.endswith(".png"))[1]
    path = output / "images" / name
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        content = path.read_bytes()
        path.unlink()  # it is the same file as the one in generations
        path.write_bytes(content[: len(content) // 2])
    elif harm == "jpeg":
        picture = Image.open(path).convert("RGB")
        path.unlink()
        picture.save(path, format="JPEG")
    else:
        path = path.with_name("99999.png")
        shutil.copy(output / "images" / name, path)
    with pytest.raises(UserError, match=path.name) as error:
        run("--output", output, *arguments_of(task, prompts[task]), "--check")
    words = {"missing": "is missing", "cut": "not readable", "jpeg": "not PNG", "stray": "is none of the pictures"}
    assert words[harm] in str(error.value) and "\n" not in str(error.value)


def test_every_rule_of_a_scorer_has_its_refusal(made, prompts, tmp_path):
    def refused(task: str, change, *words: str) -> None:
        output = tmp_path / f"{task}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(made[task], output)
        change(output / "images")
        with pytest.raises(UserError) as error:
            run("--output", output, *arguments_of(task, prompts[task]), "--check")
        assert all(word in str(error.value) for word in words), str(error.value)

    def another_line(folder: Path) -> None:
        (folder / "00001" / "metadata.jsonl").write_text(json.dumps(GENEVAL[0]))

    def another_size(folder: Path) -> None:
        (folder / "10.png").unlink()
        Image.new("RGB", (24, 24)).save(folder / "10.png")

    def odd(folder: Path) -> None:
        (folder / "10.png").unlink()
        Image.new("RGB", (16, 18)).save(folder / "10.png")

    refused("geneval", another_line, "00001/metadata.jsonl", "line 2")
    refused("geneval", lambda folder: (folder / "00002" / "metadata.jsonl").unlink(), "00002/metadata.jsonl is missing")
    refused("geneval", lambda folder: (folder / "00002/samples/0000.png.old").touch(), "0000.png.old is none")
    refused("geneval", lambda folder: shutil.copytree(folder / "00001", folder / "00007"), "00007/samples/0000.png")
    refused("dpg", another_size, "several sizes")
    refused("dpg", odd, "10.png", "not a grid")
    refused("dpg", lambda folder: (folder / "notes.md").touch(), "notes.md")
    for task, own in (("dpg", "dpg-bench_20261125-1200_results.txt"), ("imgedit", "result.json")):
        output = tmp_path / f"own-{task}"
        shutil.copytree(made[task], output)
        (output / "images" / own).touch()  # a scorer's own results are no pictures
        run("--output", output, *arguments_of(task, prompts[task]), "--check")


def test_a_few_of_each_kind_have_the_pictures_that_all_would_and_are_extended(made, export, prompts, tmp_path, capsys):
    output = tmp_path / "out"
    few = ["--model", export, "--output", output, *arguments_of("geneval", prompts["geneval"])]
    run(*few, "--per-kind", 1, "--batch-size", 2)
    assert "of 2 of 3 items: no set to average" in capsys.readouterr().out
    found = result(output)
    assert not found["complete"] and found["items"] == {"expected": 12, "done": 8} and "scores" not in found
    part = files(output)
    assert "00002/metadata.jsonl" in part and not any(name.startswith("00001") for name in part)
    assert all(files(made["geneval"])[name] == content for name, content in part.items())
    run(*few)
    assert result(output)["complete"] and files(output) == files(made["geneval"])


def test_rewritten_prompts_are_named(made, export, prompts, tmp_path, monkeypatch):
    items = evaluate_items(prompts["geneval"])
    official = pictures.BENCHMARKS["geneval"]
    known = replace(official, official=pictures.digest(items), frames=pictures.digest(items, False))
    monkeypatch.setitem(pictures.BENCHMARKS, "geneval", known)
    texts = tmp_path / "long.txt"
    texts.write_text("\n".join(f"A photograph of high quality, number {number}" for number in range(3)))
    start = ["--model", export, *arguments_of("geneval", prompts["geneval"])]
    run(*start, "--output", tmp_path / "official")
    assert result(tmp_path / "official")["data"]["prompts"] == "official"
    run(*start, "--output", tmp_path / "long", "--rewritten", texts)
    data = result(tmp_path / "long")["data"]
    assert data["prompts"] == "rewritten" and data["rewritten"] == "long.txt"
    lines = (tmp_path / "long" / "generations" / "generations.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prompt"] == "A photograph of high quality, number 0"
    metadata = json.loads((tmp_path / "long/images/00000/metadata.jsonl").read_text())
    assert metadata == GENEVAL[0]  # what is looked for stays
    texts.write_text("only one")
    with pytest.raises(UserError, match="1 prompts, 3 are needed"):
        run(*start, "--output", tmp_path / "x", "--rewritten", texts)
    changed = tmp_path / "geneval.jsonl"
    changed.write_text("".join(json.dumps({**line, "prompt": "a long text"}) + "\n" for line in GENEVAL))
    assert pictures.name_prompts(known, evaluate_items(changed)) == "rewritten"


def evaluate_items(path: Path):
    return pictures.read_items(pictures.BENCHMARKS["geneval"], path)


def test_a_damaged_source_picture_is_a_hole_with_its_reason(export, prompts, tmp_path):
    shutil.copytree(prompts["imgedit"].parent, tmp_path / "edits")
    file = tmp_path / "edits" / "basic_edit.json"
    (tmp_path / "edits" / "sources" / "style" / "2.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 3 are missing \(7.png\): no average of a part"):
        run("--model", export, "--output", tmp_path / "out", *arguments_of("imgedit", file))
    found = result(tmp_path / "out")
    assert not found["complete"] and found["items"] == {"expected": 3, "done": 2} and not found["pictures"]["sha256"]
    (tmp_path / "edits" / "sources" / "style" / "2.jpg").unlink()
    with pytest.raises(UserError, match="has no style/2.jpg"):
        run("--model", export, "--output", tmp_path / "out", *arguments_of("imgedit", file))


def test_a_job_that_was_killed_goes_on_and_ends_with_the_same_pictures(commands, made, export, prompts, tmp_path):
    output = tmp_path / "out"
    words = ["--model", export, "--output", output, *arguments_of("geneval", prompts["geneval"]), "--batch-size", 1]
    record = output / "generations" / "generations.jsonl"
    running = commands.start("tools/evaluate.py", *words)
    running.wait_until(lambda: record.is_file() and record.read_bytes().count(b"\n") >= 3)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert 3 <= record.read_bytes().count(b"\n") < 12
    geneval = arguments_of("geneval", prompts["geneval"])
    done = commands.run("tools/evaluate.py", "--output", output, *geneval, "--check")
    assert done.code == 2 and "0 of 12 pictures" in done.err
    before = record.read_bytes()
    done = commands.run("tools/evaluate.py", *words)
    assert done.code == 0, done.err
    assert record.read_bytes().startswith(before) and files(output) == files(made["geneval"])


def test_bad_input_is_one_line(export, prompts, tmp_path, commands):
    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(UserError, match=message):
            run("--output", tmp_path / "x", *arguments)
        assert not (tmp_path / "x").exists()

    geneval = arguments_of("geneval", prompts["geneval"])
    refused("needs --model", *geneval)
    refused("needs --prompts-file", "--task", "dpg", "--model", export)
    refused("--pairs means nothing to --task geneval", *geneval, "--model", export, "--pairs", 3)
    refused("no model folder", *geneval, "--model", tmp_path / "none")
    refused("no prompt file of geneval", "--task", "geneval", "--prompts-file", prompts["imgedit"], "--model", export)
    (tmp_path / "half.jsonl").write_text('{"tag": "position", "prompt": "\\ud800", "include": []}\n')
    refused("not valid Unicode", "--task", "geneval", "--model", export, "--prompts-file", tmp_path / "half.jsonl")
    imgedit = ["--task", "imgedit", "--model", export, "--pictures", tmp_path]
    refused("cannot be read", *imgedit, "--prompts-file", tmp_path / "none")
    (tmp_path / "bad.json").write_text(json.dumps({"../x": IMGEDIT["7"]}))
    refused("no name of a file", *imgedit, "--prompts-file", tmp_path / "bad.json")
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n')
    refused("twice", "--task", "dpg", "--prompts-file", tmp_path / "twice.jsonl", "--model", export)


def test_other_settings_over_pictures_are_refused_with_what_this_command_takes(made, export, prompts, tmp_path):
    shutil.copytree(made["geneval"], tmp_path / "out")
    words = ["--output", tmp_path / "out", *arguments_of("geneval", prompts["geneval"]), "--model", export]
    with pytest.raises(UserError, match="another job .*seed.*: give another --output$"):
        run(*words, "--seed", 99)
