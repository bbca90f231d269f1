"""What the commands that people wait for import, and say, from their start to their first result; what they refuse before.

In fresh processes, and by name: seconds differ between machines, the list of what is imported does not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretrain.tiny_run import TinyData, write_config
from tests.tools.tiny_export import write_export

ROOT = Path(__file__).resolve().parents[1]
WATCHED = """
import atexit, json, runpy, sys
record, sys.argv = sys.argv[1], sys.argv[2:]
atexit.register(lambda: open(record, "w").write(json.dumps([name for name in sys.modules if sys.modules[name]])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOBODYS = {
    "wandb",
    "boto3",
    "botocore",
    "google.cloud",
    "azure",
    "oci",
    "paramiko",
    "torchvision",
    "peft",
    "deepspeed",
    "tensorflow",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "datasets",
    "IPython",
    "pytest",
}
"""What no command may import that was not asked for it."""
SHARDED = {"sympy", "torch.distributed.tensor"}
COMPILER = {"torch._dynamo", "torch._inductor"}
OTHERS = {
    "train": {
        "transformers",
        "diffusers",
        "accelerate",
        "tensorboard",
        "torch.utils.tensorboard",
        "pyarrow",
        *SHARDED,
        *COMPILER,
    },
    "shard": {
        "transformers",
        "accelerate",
        "megatron",
        "torch._dynamo",
        "sympy",
        "torch.distributed.tensor",
        "pyarrow",
        "streaming.base.dataset",
    },
    "convert": {"megatron", "streaming", "tensorboard", "transformers.modeling_utils", *SHARDED, *COMPILER},
    "generate": {"megatron", "streaming", "tensorboard", "starlette", "pyarrow", *SHARDED, *COMPILER},
    "serve": {"megatron", "streaming", "tensorboard", "pyarrow", *SHARDED, *COMPILER},
}
"""What that command may not import beside these."""
NOISE = ("Warning", "warning", "WARNING", "deprecated", "not installed", "NOTE")


def imported(record: Path) -> set[str]:
    """Every module of a process that has ended."""
    return set(json.loads(record.read_text()))


def start(record: Path, *command: object) -> subprocess.Popen:
    """A command in a fresh Python that writes down its modules at its end."""
    words = [sys.executable, "-c", WATCHED, str(record), *map(str, command)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_light(name: str, record: Path, said: str) -> None:
    modules = imported(record)
    assert "torch" in modules
    found = modules & (NOBODYS | OTHERS[name])
    assert not found
    assert not [line for line in said.splitlines() if any(word in line for word in NOISE)], said


def finished(name: str, record: Path, *command: object) -> None:
    process = start(record, *command)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert_light(name, record, out + err)


def test_training_to_its_first_step_and_its_export(tiny_data: TinyData, tmp_path: Path):
    config = write_config(tiny_data, tmp_path / "run")
    words = ("run.steps=1", "optim.warmup_steps=0", "log.heldout_every=0", "log.samples_every=0")
    words = (*words, "parallel.distributed_optimizer=true")
    finished("train", tmp_path / "train.json", "pretrain/train.py", "--config", config, *words)
    command = ("tools/convert_to_hf.py", "--checkpoint", tmp_path / "run", "--output", tmp_path / "model")
    finished("convert", tmp_path / "convert.json", *command)
    assert json.loads((tmp_path / "model/config.json").read_text())["skills"] == ["caption", "draw"]


def test_sharding_a_folder(tiny_data: TinyData, tmp_path: Path):
    finished(
        "shard",
        tmp_path / "shard.json",
        "tokenization/shard_images.py",
        "--input",
        tiny_data.corpus / "heldout/folder",
        "--output",
        tmp_path / "shards",
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
    )


def test_a_picture_and_a_server(tmp_path: Path):
    model = write_export(tmp_path / "model")
    finished(
        "generate",
        tmp_path / "generate.json",
        "tools/generate.py",
        "--model",
        model,
        "--prompt",
        "a",
        "--output",
        tmp_path / "drawn",
    )
    server = start(tmp_path / "serve.json", "tools/serve.py", "--model", model, "--port", 0)
    try:
        lines = []
        while not lines or not lines[-1].startswith("ready: "):
            lines.append(server.stdout.readline())
            assert lines[-1], server.communicate()
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=600)
        assert server.returncode == 0, err
    finally:
        server.kill()
    assert_light("serve", tmp_path / "serve.json", "".join(lines) + out + err)


@pytest.mark.parametrize(
    "command, names",
    [
        (("pretrain/train.py", "--config", "pretrain/configs/demo.yaml", "data.tokenizer=nowhere"), "nowhere"),
        (("pretrain/train.py", "--config", "pretrain/configs/demo.yaml", "data.sources=[{path: nowhere}]"), "nowhere"),
        (("tools/convert_to_hf.py", "--checkpoint", "nowhere", "--output", "nothing"), "nowhere"),
        (("tools/convert_to_hf.py", "--checkpoint", "nowhere", "--output", "docs"), "docs"),
        (("tools/generate.py", "--model", "nowhere", "--prompt", "a", "--output", "nothing"), "nowhere"),
        (("tools/serve.py", "--model", "nowhere"), "nowhere"),
        (
            (
                "tokenization/shard_images.py",
                "--input",
                "docs",
                "--output",
                "nothing",
                "--vq",
                "nowhere",
                "--tokenizer",
                "docs",
            ),
            "nowhere",
        ),
        (
            (
                "tokenization/shard_images.py",
                "--input",
                "nowhere",
                "--output",
                "nothing",
                "--vq",
                "openmoji-64",
                "--tokenizer",
                "docs",
            ),
            "nowhere",
        ),
    ],
)
def test_what_is_absent_is_said_before_the_heavy_imports(
    tiny_data: TinyData, tmp_path: Path, command: tuple, names: str
):
    if command[-1].startswith("data.tokenizer"):
        command = (*command, f"data.sources=[{{path: {tiny_data.train}}}]", f"data.heldout={tiny_data.heldout}")
    process = start(tmp_path / "modules.json", *command)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and names in err, err
    assert not imported(tmp_path / "modules.json") & {"torch", "transformers", "megatron", "diffusers", "streaming"}
    assert not (ROOT / "nothing").exists()
