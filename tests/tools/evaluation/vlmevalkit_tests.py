"""VLMEvalKit's own runner on an exported folder and local data, offline; `make test-eval` runs this file."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import ROOT
from tests.tools.tiny_export import write_export
from tools.evaluation.answering import NO_OPTION, open_answerer, reduced
from tools.evaluation.options import choose

PYTHON = ROOT / ".venv-eval" / "bin" / "python"
PROMPT = "Question: What is it?\nOptions:\n{options}\nPlease select the correct answer from the options above. \n"
LETTERS = "ABCD"


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("vlmevalkit") / "export", max_position_embeddings=512)


@pytest.fixture(scope="module")
def questions(tiny_data, tmp_path_factory) -> list[dict]:
    """Eight pictures of the corpus with four names each, as local_choice.tsv of a folder of VLMEvalKit's data."""
    corpus = tiny_data.corpus / "train" / "folder"
    lines = [json.loads(line) for line in (corpus / "captions.jsonl").read_text(encoding="utf-8").splitlines()][:8]
    found = []
    for number, line in enumerate(lines):
        names = [lines[(number + other) % len(lines)]["captions"][0] for other in range(4)]
        right = number % 4
        names[0], names[right] = names[right], names[0]
        found.append({"image": corpus / line["image"], "options": dict(zip(LETTERS, names)), "answer": LETTERS[right]})
    folder = tmp_path_factory.mktemp("LMUData")
    rows = ["\t".join(["index", "question", *LETTERS, "answer", "image"])]
    for number, one in enumerate(found):
        picture = base64.b64encode(one["image"].read_bytes()).decode()
        rows.append("\t".join([str(number), "What is it?", *one["options"].values(), one["answer"], picture]))
    (folder / "local_choice.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for one in found:
        one["folder"] = folder
    return found


def run(export: Path, questions: list[dict], output: Path, *more: str, data: tuple[str, ...] = ("local_choice",)):
    """The command -> its end, and where VLMEvalKit has put its files."""
    command = [PYTHON, "tools/run_vlmevalkit.py", "--model", export, "--data", *data, "--output", output, *more]
    environment = {
        **os.environ,
        "LMUData": str(questions[0]["folder"]),
        "HF_HUB_OFFLINE": "1",
        "PRED_FORMAT": "tsv",
        "HOME": str(output.parent),
        "HF_HOME": str(output / "home"),
    }
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    return done, output / "unix"


def answers(folder: Path) -> list[str]:
    with open(folder / "unix_local_choice.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    return [row["prediction"] for row in sorted(rows, key=lambda row: int(row["index"]))]


def write_answers(folder: Path, said: str) -> None:
    """The same answer to all questions, as if the model had said it."""
    path = folder / "unix_local_choice.tsv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], dialect="excel-tab")
        writer.writeheader()
        writer.writerows({**row, "prediction": said} for row in rows)
    for old in folder.glob("*exact_matching*"):
        old.unlink()


def score(folder: Path) -> float:
    return json.loads((folder / "status.json").read_text())["datasets"]["local_choice"]["metrics"]["split=none|Overall"]


def test_the_runner_gets_the_answers_of_the_model_reduced_to_options(export, questions, tmp_path):
    (raw_end, raw), (end, exact) = (
        run(export, questions, tmp_path / "raw", "--raw"),
        run(export, questions, tmp_path / "exact"),
    )
    assert raw_end.returncode == end.returncode == 0, (raw_end.stderr[-2000:], end.stderr[-2000:])
    answerer = open_answerer(str(export), device="cpu", exact=False)
    for number, one in enumerate(questions):
        prompt = PROMPT.format(options="\n".join(f"{key}. {name}" for key, name in one["options"].items()))
        (expected,) = answerer.answer([prompt], [[Image.open(one["image"]).convert("RGB")]], 64)
        assert answers(raw)[number] == expected
        assert answers(exact)[number] == reduced(prompt, expected) == (choose(expected, one["options"]) or NO_OPTION)
    right = [said == one["answer"] for said, one in zip(answers(exact), questions, strict=True)]
    assert score(exact) == sum(right) / len(right)


def test_an_article_is_an_answer_to_the_runner_and_none_to_us(export, questions, tmp_path):
    """The runner scores answers that are there: it takes "A dog" for option A, which is why answers are reduced before."""
    _, folder = run(export, questions, tmp_path / "said", "--", "--mode", "infer")
    share = sum(one["answer"] == "A" for one in questions) / len(questions)
    assert 0 < share < 1
    for said, expected in (
        ("A dog", share),
        (reduced("What?\nA. cat\nB. dog\nC. sun\nD. moon", "A dog on grass"), 0.0),
    ):
        write_answers(folder, said)
        done, _ = run(export, questions, tmp_path / "said", "--", "--mode", "eval")
        assert done.returncode == 0, done.stderr[-2000:]
        assert score(folder) == expected


def test_what_cannot_be_done_is_one_line(export, questions, tmp_path):
    done, _ = run(export, questions, tmp_path / "none", data=("no_such_data",))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("no scores of no_such_data (invalid_dataset)")
    (tmp_path / "file").write_text("x")
    done, _ = run(export, questions, tmp_path / "file")
    assert done.returncode == 2 and "--output" in done.stderr.splitlines()[-1], done.stderr
    done, _ = run(tmp_path, questions, tmp_path / "none")
    assert (
        done.returncode == 2 and done.stderr.splitlines() == [done.stderr.strip()] and "no config.json" in done.stderr
    )
