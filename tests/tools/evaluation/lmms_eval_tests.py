"""lmms-eval's own runner on an exported folder and a local task, offline; `make test-eval` runs this file.

Its name keeps it out of `make test`, because lmms-eval lives in the environment of `make setup-eval`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import ROOT
from tests.tools.tiny_export import write_export
from tools.evaluation.answering import NO_OPTION, open_answerer
from tools.evaluation.options import choose

PYTHON = ROOT / ".venv-eval" / "bin" / "python"
TASKS = Path(__file__).parent / "lmms_tasks"


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("lmms") / "export", max_position_embeddings=512)


@pytest.fixture(scope="module")
def tasks(tiny_data, tmp_path_factory) -> Path:
    """The shipped task, with questions about eight pictures of the corpus."""
    folder = tmp_path_factory.mktemp("tasks")
    corpus = tiny_data.corpus / "train" / "folder"
    lines = [json.loads(line) for line in (corpus / "captions.jsonl").read_text(encoding="utf-8").splitlines()][:8]
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            names = [lines[(number + other) % len(lines)]["captions"][0] for other in range(4)]
            right = number % 4
            names[0], names[right] = names[right], names[0]
            values = {"image": str(corpus / line["image"]), "names": names, "answer": "ABCD"[right]}
            file.write(json.dumps(values) + "\n")
    (folder / "utils.py").write_text((TASKS / "utils.py").read_text())
    yaml = (TASKS / "local_choice.yaml").read_text().replace("questions.jsonl", str(folder / "questions.jsonl"))
    (folder / "local_choice.yaml").write_text(yaml)
    return folder


def run(export: Path, tasks: Path, output: Path, *more: str) -> tuple[dict, list[dict]]:
    """lmms-eval's command -> its results of the task, and its line of each question."""
    command = [
        PYTHON,
        "-m",
        "lmms_eval",
        "--model",
        "unix",
        "--model_args",
        ",".join((f"pretrained={export}", *more)),
        "--tasks",
        "local_choice",
        "--include_path",
        tasks,
        "--batch_size",
        "3",
        "--output_path",
        output,
        "--log_samples",
        "--device",
        "cpu",
    ]
    environment = {
        **os.environ,
        "LMMS_EVAL_PLUGINS": "tools.evaluation.lmms_plugin",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(output / "home"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = output.rglob("*results.json")
    (samples,) = output.rglob("*samples_local_choice.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text())["results"]["local_choice"], sorted(lines, key=lambda line: line["doc_id"])


def said_by(line: dict) -> str:
    answer = line["filtered_resps"]
    while isinstance(answer, list):
        answer = answer[0]
    return answer


def test_the_runner_gets_the_answers_of_the_model_reduced_to_options(export, tasks, tmp_path):
    raw, raw_lines = run(export, tasks, tmp_path / "raw", "exact=False")
    exact, lines = run(export, tasks, tmp_path / "exact")
    docs = [json.loads(line) for line in (tasks / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    answerer = open_answerer(str(export), device="cpu", exact=False)
    for number, doc in enumerate(docs):
        options = dict(zip("ABCD", doc["names"], strict=True))
        question = "\n".join(
            ["What is it?", *(f"{key}. {name}" for key, name in options.items()), "Answer with the option's letter."]
        )
        (expected,) = answerer.answer([question], [[Image.open(doc["image"]).convert("RGB")]], 8)
        assert said_by(raw_lines[number]) == expected
        assert said_by(lines[number]) == (choose(expected, options) or NO_OPTION)
    right = [
        choose(said_by(line), dict(zip("ABCD", doc["names"]))) == doc["answer"]
        for line, doc in zip(raw_lines, docs, strict=True)
    ]
    assert exact["right,none"] == sum(right) / 8
    again, _ = run(export, tasks, tmp_path / "again")
    assert {name: value for name, value in again.items()} == exact
