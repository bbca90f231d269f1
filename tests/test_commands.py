"""Every command: --help answers without the heavy imports, and shows an example that its own parser takes."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tokenization", "model", "pretrain", "tools", "slurm")
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if re.search(r"^if __name__ == .__main__.:", path.read_text(encoding="utf-8"), re.MULTILINE)
)
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "megatron",
    "diffusers",
    "streaming",
    "tokenizers",
    "PIL",
    "yaml",
    "safetensors",
}


class Parsed(Exception):
    """The command line was taken."""


def example_of(text: str) -> list[str]:
    """The words of the first example in a --help text, its lines joined."""
    after = text[text.index("example") :].split("\n", 1)[1]
    lines = [line.strip() for line in after.splitlines()]
    first = next(index for index, line in enumerate(lines) if line.startswith("python "))
    taken = [lines[first]]
    for line in lines[first + 1 :]:
        if not line or line.startswith("python "):
            break
        taken.append(line)
    return shlex.split(" ".join(taken).replace("\\ ", ""))


def test_the_commands_that_people_type_are_among_them():
    assert set(COMMANDS) >= {
        "pretrain/train.py",
        "tokenization/demo_corpus.py",
        "tokenization/shard_images.py",
        "tokenization/train_tokenizer.py",
        "tokenization/train_vq.py",
        "tools/convert_to_hf.py",
        "tools/generate.py",
    }


@pytest.fixture(scope="module")
def helps() -> dict[str, subprocess.CompletedProcess]:
    """What each command answers to --help, in a fresh process that lists what it imports."""
    return {
        command: subprocess.run(
            [sys.executable, "-X", "importtime", command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        for command in COMMANDS
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once(helps, command):
    done = helps[command]
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported and not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_the_command_takes(helps, command, monkeypatch):
    words = example_of(helps[command].stdout)
    assert words[:2] == ["python", command]
    module = importlib.import_module(command.removesuffix(".py").replace("/", "."))
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments, **keywords):
        parse(*arguments, **keywords)  # exits when the example is wrong usage
        raise Parsed

    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        module.main()
    for word in words[2:]:
        if word.startswith("pretrain/configs/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_does_not_exist_is_wrong_usage(command):
    arguments = [sys.executable, command, "--no-such-flag"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "usage:" in done.stderr and "Traceback" not in done.stderr
