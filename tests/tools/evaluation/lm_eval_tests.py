"""lm-eval-harness on an exported folder, offline, by its own command; `make test-eval` runs this file.

Its name keeps it out of `make test`, because lm-eval has an environment of its own, `.venv-eval`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.commands import ROOT, assert_refused
from tests.model.tiny_hf import randomise
from tests.pretrain.tiny_run import config_values

LM_EVAL = ROOT / ".venv-eval" / "bin" / "lm_eval"
ROWS = 448  # of the language model's embedding: more than the tokenizer has
TEXT_ONLY = ",text_logits_only=True"
NEXT_TO_NOTHING = 1e-30  # a learning rate: the step is made, and no weight moves


def write_base(folder: Path, tokenizer: Path) -> None:
    """A random Qwen2 with the tokenizer of the tiny shards."""
    values = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(values["model"]["vocab"]) + len(values["added_tokens"]) <= ROWS
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    randomise(Qwen2ForCausalLM(config), seed=5).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_tasks(folder: Path, captions: Path) -> None:
    """Two tasks of the demo corpus' names: which of four belongs to the English one, and how likely are the names."""
    folder.mkdir()
    lines = [json.loads(line)["captions"] for line in captions.read_text(encoding="utf-8").splitlines()]
    lines = [names for names in lines if len(names) > 1][:12]
    with open(folder / "names.jsonl", "w", encoding="utf-8") as file:
        for number, names in enumerate(lines):
            choices = [lines[(number + other) % len(lines)][1] for other in range(4)]
            answer = number % 4
            choices[0], choices[answer] = choices[answer], choices[0]
            values = {"question": names[0], "choices": choices, "answer": answer, "text": ", ".join(names)}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
    files = {"data_files": {"test": str(folder / "names.jsonl")}}
    data = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    choice = {
        "task": "names_choice",
        **data,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.0},
    }
    rolling = {
        "task": "names_text",
        **data,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
        "metadata": {"version": 1.0},
    }
    for values in (choice, rolling):
        (folder / f"{values['task']}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def folders(commands, tiny_data, tmp_path_factory) -> Path:
    """base, its Uni-X after one step that moved nothing as `model`, and `tasks`."""
    root = tmp_path_factory.mktemp("text")
    write_base(root / "base", tiny_data.tokenizer)
    write_tasks(root / "tasks", tiny_data.corpus / "train/folder/captions.jsonl")
    values = config_values(tiny_data, root / "run")
    values["run"] |= {"steps": 1, "init_from": str(root / "start")}
    values["model"] |= {"image_token_offset": ROWS, "max_position_embeddings": 256}
    values["optim"] |= {"lr": NEXT_TO_NOTHING, "final_lr": 0.0}
    (root / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for script, *arguments in (
        (
            "tools/convert_from_hf.py",
            "--hf",
            root / "base",
            "--output",
            root / "start",
            "--separate",
            1,
            1,
            "--codebook-size",
            64,
        ),
        ("pretrain/train.py", "--config", root / "run.yaml"),
        ("tools/convert_to_hf.py", "--checkpoint", root / "run", "--output", root / "model"),
    ):
        done = commands.run(script, *arguments)
        assert done.code == 0, done.err
    return root


def lm_eval(model: Path, tasks: Path, output: Path, more: str = "", batch: int = 4) -> dict[str, list]:
    """lm-eval's command, without a network -> its answers by task: the log likelihoods of each request."""
    opened = f"pretrained={model},trust_remote_code=True,dtype=float32{more}"
    command = [
        LM_EVAL,
        "--model",
        "hf",
        "--model_args",
        opened,
        "--tasks",
        "names_choice,names_text",
        "--include_path",
        tasks,
        "--device",
        "cpu",
        "--batch_size",
        batch,
        "--output_path",
        output,
        "--log_samples",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output / "home")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for path in output.rglob("samples_*.jsonl"):
        task = "names_choice" if "names_choice" in path.name else "names_text"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[task] = [line["resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
    assert set(found) == {"names_choice", "names_text"}
    return found


def numbers(answers: object) -> list[float]:
    """All log likelihoods in nested lists, in order."""
    if isinstance(answers, list | tuple):
        return [number for answer in answers for number in numbers(answer)]
    try:
        return [] if isinstance(answers, bool) else [float(answers)]
    except ValueError:  # whether it is the likeliest text, as a word
        return []


def test_the_text_scores_of_a_uni_x_are_those_of_its_language_model(folders, tmp_path):
    base = lm_eval(folders / "base", folders / "tasks", tmp_path / "base")
    ours = lm_eval(folders / "model", folders / "tasks", tmp_path / "model", TEXT_ONLY)
    for task, count in (("names_choice", 48), ("names_text", 12)):
        expected, found = numbers(base[task]), numbers(ours[task])
        assert len(found) == count and len(set(found)) > count / 2
        assert found == pytest.approx(expected, abs=2e-5)
    joint = lm_eval(folders / "model", folders / "tasks", tmp_path / "joint", batch=1)
    for found, expected in zip(numbers(joint["names_choice"]), numbers(base["names_choice"]), strict=True):
        assert found < expected - 0.01  # some probability goes to a picture, which this text is not


def test_our_command_runs_the_harness_and_keeps_its_numbers(commands, folders, tmp_path):
    words = [
        "tools/evaluate.py",
        "--task",
        "text",
        "--model",
        folders / "model",
        "--tasks",
        "names_choice,names_text",
        "--include-path",
        folders / "tasks",
        "--batch-size",
        4,
    ]
    for name in ("a", "b"):
        done = commands.run(*words, "--output", tmp_path / name)
        assert done.code == 0, done.err
    found = json.loads((tmp_path / "a/text.json").read_text())
    assert (tmp_path / "a/text.json").read_bytes() == (tmp_path / "b/text.json").read_bytes()
    assert found["items"] == {"expected": 24, "done": 24} and found["settings"]["harness"] == "lm-eval 0.4.13"
    assert 0 <= found["scores"]["names_choice/acc"] <= 1 and found["scores"]["names_text/byte_perplexity"] > 1
    assert f"names_choice/acc {found['scores']['names_choice/acc']:.6g}" in done.out
    done = commands.run(*words[:5], "--tasks", "no_such_task", "--output", tmp_path / "c")
    assert done.code == 1 and done.err.startswith("error: ") and "no_such_task" in done.err
    done = commands.run(*words, "--lm-eval", tmp_path / "none", "--output", tmp_path / "d")
    assert_refused(done, "none is missing", "make setup-eval")
