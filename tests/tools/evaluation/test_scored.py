"""What the official scorers answered: averaged as they do, refused unless it is of every picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.tools.evaluation.prompt_files import DPG, GENEVAL, IMGEDIT, arguments_of, write_prompts
from tools import evaluate


def geneval_answers() -> str:
    right = {0: (1, 1, 0, 0), 1: (1, 1, 1, 1), 2: (0, 0, 0, 1)}
    lines = [
        {
            "filename": f"/any/where/images/{item:05d}/samples/{sample:04d}.png",
            "tag": GENEVAL[item]["tag"],
            "prompt": GENEVAL[item]["prompt"],
            "correct": bool(value),
            "reason": "",
            "metadata": "{}",
            "details": "{}",
        }
        for item, values in right.items()
        for sample, value in enumerate(values)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def dpg_answers() -> str:
    lines = [f"images, and more/{key}.png, 1.0, 0.5, 0.5, 0.{number}, 0.9" for number, key in enumerate(DPG)]
    return "\n".join([*lines, "Model: images", "L1 category scores:", "\tentity: 90.0", "DPG-Bench score: 99.0"]) + "\n"


def imgedit_answers() -> dict[str, str]:
    words = "Brief reasoning: it is good: mostly\nPrompt Compliance: {}\nVisual Naturalness: {}\nPhysical Integrity: {}"
    return {key: words.format(*marks) for key, marks in zip(IMGEDIT, ((5, 4, 3), (1, 1, 2), (3, 3, 3)), strict=True)}


ANSWERS = {"geneval": geneval_answers(), "dpg": dpg_answers(), "imgedit": json.dumps(imgedit_answers())}
OVERALL = {
    "geneval": ((2 + 4) / 8 + 1 / 4) / 2,
    "dpg": 100 * sum((2.0 + number / 10) / 4 for number in range(3)) / 3,
    "imgedit": (4.0 + 1.33 + 3.0) / 3,
}


def score(folder: Path, task: str, answers: str, *more: str) -> dict:
    folder.mkdir(exist_ok=True)
    file = folder / "answers"
    file.write_text(answers, encoding="utf-8")
    words = [*arguments_of(task, write_prompts(folder, task)), "--output", folder / "out", "--scored", file, *more]
    words = [word for word in words if word not in ("--pictures", folder / "sources")]
    judge = ["--judge", "a judge"] if task == "imgedit" else []
    assert evaluate.main([*map(str, words), *judge]) == 0
    return json.loads((folder / "out" / f"{task}-scores.json").read_text())


@pytest.mark.parametrize("task", ANSWERS)
def test_a_whole_set_has_the_scorers_average(tmp_path, task, capsys):
    found = score(tmp_path, task, ANSWERS[task])
    assert found["complete"] and found["scores"]["overall"] == pytest.approx(OVERALL[task], abs=1e-12)
    assert found["model"] == {"from": "not known"} and found["settings"]["judge"]
    assert f"overall {OVERALL[task]:.6g}" in capsys.readouterr().out
    assert score(tmp_path, task, ANSWERS[task]) == found


@pytest.mark.parametrize("task", ANSWERS)
def test_a_part_of_a_set_has_no_average(tmp_path, task):
    if task == "imgedit":
        part = json.dumps({**imgedit_answers(), "9": "I cannot judge this."})
        missing = "9"
    else:
        lines = ANSWERS[task].splitlines()
        part = "\n".join(lines[:1] + lines[2:]) + "\n"
        missing = {"geneval": "00000/samples/0001.png", "dpg": "10"}[task]
    with pytest.raises(UserError, match=rf"missing \({missing}\): no average of a part"):
        score(tmp_path, task, part)
    assert not list(tmp_path.glob("out/*"))


def test_answers_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="scored twice"):
        score(tmp_path, "geneval", ANSWERS["geneval"] + ANSWERS["geneval"].splitlines()[0])
    with pytest.raises(UserError, match="none of the prompt file's"):
        score(tmp_path, "dpg", ANSWERS["dpg"].replace("vrd4", "vrd5"))
    with pytest.raises(UserError, match="is not what the scorer of geneval writes"):
        score(tmp_path, "geneval", "Summary\n")
    with pytest.raises(UserError, match="none of the prompt file's|missing"):
        score(tmp_path, "dpg", "nothing\n")
    with pytest.raises(UserError, match="no average of 2 of 3 items"):
        score(tmp_path, "geneval", ANSWERS["geneval"], "--per-kind", "1")


@pytest.mark.parametrize("value", ['"false"', "null", "1"])
def test_a_verdict_that_is_neither_true_nor_false_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="line 3: correct is .*neither true nor false"):
        lines = ANSWERS["geneval"].splitlines()
        lines[2] = lines[2].replace("false", value).replace("true", value)
        score(tmp_path, "geneval", "\n".join(lines))


def test_marks_outside_of_the_scale_and_equal_keys_are_refused(tmp_path):
    with pytest.raises(UserError, match="7: a mark of 50.*1 to 5"):
        score(tmp_path, "imgedit", json.dumps(imgedit_answers() | {"7": "Prompt Compliance: 50\nNaturalness: 3"}))
    with pytest.raises(UserError, match="'7' stands twice"):
        score(tmp_path, "imgedit", ANSWERS["imgedit"][:-1] + ', "7": "Compliance: 1"}')
    with pytest.raises(UserError, match="0.2, 7.0.*0 to 1"):
        score(tmp_path, "dpg", ANSWERS["dpg"].replace("0.5, 0.2, 0.9", "0.2, 7.0, 0.9"))


def test_answers_nested_without_end_are_one_line(tmp_path):
    for task in ("geneval", "imgedit"):
        with pytest.raises(UserError, match="is not what the scorer"):
            score(tmp_path, task, "[" * 100_000)


def test_a_byte_order_mark_before_answers_changes_nothing(tmp_path):
    for task, answers in ANSWERS.items():
        assert score(tmp_path / task, task, "\ufeff" + answers.replace("\n", "\r\n"))["scores"]["overall"]


def test_scores_of_all_pictures_are_not_given_the_settings_of_a_part(tmp_path):
    score(tmp_path, "geneval", ANSWERS["geneval"])
    result = json.loads((tmp_path / "out" / "geneval-scores.json").read_text())
    part = {**result, "task": "geneval", "complete": False, "items": {"expected": 12, "done": 4}}
    (tmp_path / "out" / "geneval.json").write_text(json.dumps(part))
    with pytest.raises(UserError, match="geneval.json: .*4 of 12 pictures.*draw the others"):
        score(tmp_path, "geneval", ANSWERS["geneval"])
