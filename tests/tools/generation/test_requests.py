"""Prompts files, and what generate.py tells of options and of the model before anything is made."""

from __future__ import annotations

import pytest

from tools import generate
from tools.generation import requests


@pytest.mark.parametrize(
    ("skills", "options", "told"),
    [
        (["draw", "caption"], ["--task", "draw"], ""),
        (["draw", "caption"], ["--task", "edit"], "--task edit: the model's training data did not teach it"),
        (["draw", "caption"], ["--task", "caption", "--chat"], "--chat: the model's training data did not teach it"),
        ([], ["--task", "draw"], "skills in config.json: none"),
        ([], ["--task", "text"], ""),
        (None, ["--task", "edit"], ""),
    ],
)
def test_a_task_that_the_training_data_did_not_teach_is_told(skills, options, told):
    args = generate.build_parser().parse_args(["--model", "m", "--output", "o", *options])
    lines = list(requests.not_of_model(args, args.task, skills, 4))
    assert len(lines) == bool(told) and told in "".join(lines)


def test_a_line_ends_at_a_line_break_alone(tmp_path):
    """str.splitlines() cuts at U+2028, U+0085 and form feeds, too, which JSON and prompts may hold."""
    prompt = "a\u2028b\u0085c\x0cd"
    (tmp_path / "p.txt").write_text(f"{prompt}\r\n{{see below}}\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "{prompt[:-2]}"}}\n', encoding="utf-8")
    assert [request.prompt for request in requests.read_prompts(tmp_path / "p.txt")] == [prompt, "{see below}"]
    assert [request.prompt for request in requests.read_prompts(tmp_path / "p.jsonl")] == [prompt[:-2]]


def test_keys_of_prompts_that_are_not_read_are_told(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "image": "a.png"}\n{"prompt": "y", "shape": "1:1", "seed": 5}\n')
    assert [request.prompt for request in requests.read_prompts(tmp_path / "p.jsonl")] == ["x", "y"]
    told = capsys.readouterr().err
    assert told == f"warning: {tmp_path / 'p.jsonl'}: image, seed: not read, prompt, images and shape are\n"


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("draw", ["--guidance", "3", "--num-images", "2", "--preview", "4"], []),
        ("draw", ["--max-new-tokens", "9", "--chat"], ["chat", "max-new-tokens"]),
        ("draw", ["--image-guidance", "2"], ["image-guidance"]),
        ("edit", ["--image-guidance", "2", "--guidance", "3:1"], []),
        ("caption", ["--chat", "--text-temperature", "1", "--seed", "4"], []),
        ("caption", ["--guidance", "3", "--num-images", "2"], ["guidance", "num-images"]),
        ("text", ["--max-images", "2", "--temperature", "0"], ["max-images", "temperature"]),
        ("interleaved", ["--max-images", "2", "--temperature", "0", "--max-new-tokens", "5"], []),
        ("interleaved", ["--num-images", "2"], ["num-images"]),
        ("interleaved", ["--seed", "2", "--temperature", "0.5"], []),
    ],
)
def test_options_that_change_nothing_of_a_task_are_told(task, options, told):
    args = generate.build_parser().parse_args(["--model", "m", "--output", "o", "--task", task, *options])
    assert list(requests.without_effect(args, task, generate.build_parser())) == [
        f"--{name} changes nothing of --task {task}" for name in told
    ]


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("text", ["--seed", "2", "--top-p", "0.5"], ["seed", "top-p"]),
        ("text", ["--seed", "2", "--top-p", "0.5", "--text-temperature", "0.1"], []),
        ("draw", ["--top-k", "2", "--temperature", "0"], ["top-k"]),
        ("draw", ["--top-k", "2"], []),
    ],
)
def test_settings_of_chance_are_told_where_nothing_is_left_to_chance(task, options, told):
    args = generate.build_parser().parse_args(["--model", "m", "--output", "o", "--task", task, *options])
    lines = list(requests.without_effect(args, task, generate.build_parser()))
    assert [line.partition(" changes nothing at ")[0] for line in lines] == [f"--{name}" for name in told]
    assert all(line.endswith("which takes the likeliest") for line in lines)
