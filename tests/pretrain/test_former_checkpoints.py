"""A dataset and a checkpoint of before: they are read, resumed and exported as by the code that made them.

`tests/data/made_by_f2eeab9` was written by commit f2eeab9: fourteen pictures in format 2, step 3 of 6 of a tiny run, the losses of
steps 4 to 6, and two pictures that its export of step 3 drew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.commands import CommandServer
from tests.pretrain.tiny_run import read_metrics
from tokenization.sample import parts_of
from tokenization.shards import open_dataset

FORMER = Path(__file__).parents[1] / "data" / "made_by_f2eeab9"
CHECKPOINT = FORMER / "step_00000003"


def write_config(folder: Path) -> Path:
    """The configuration of the run that the checkpoint is of."""
    values = {
        "run": {"folder": str(folder), "steps": 6, "seed": 3, "threads": 1},
        "model": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "shallow": 1,
            "deep": 1,
            "rope_theta": 10_000.0,
        },
        "data": {
            "tokenizer": str(FORMER / "tokenizer"),
            "vq": str(FORMER / "vq"),
            "sources": [{"path": str(FORMER / "train")}],
            "heldout": str(FORMER / "heldout"),
            "sequence_length": 128,
            "row_multiple": 4,
            "global_batch_size": 2,
        },
        "optim": {"lr": 1e-2, "final_lr": 1e-3, "warmup_steps": 2, "dropout": 0.1},
        "checkpoint": {"every": 3, "keep": 2},
        "log": {"every": 1, "tensorboard": False, "heldout_every": 3, "heldout_rows": 2},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_former_dataset_is_read_whole():
    data = open_dataset(FORMER / "train")
    counts = json.loads((FORMER / "train/manifest.json").read_text())["counts"]
    documents = [data[number] for number in range(len(data))]
    assert len(documents) == counts["documents"] == 14
    pictures = [part.codes for document in documents for part in parts_of(document) if part.codes is not None]
    assert sum(codes.size for codes in pictures) == counts["image_tokens"] and len(pictures) == counts["pictures"]


def test_a_former_run_goes_on_with_the_losses_that_it_would_have_had(commands: CommandServer, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(CHECKPOINT, run / "checkpoints" / CHECKPOINT.name)
    done = commands.run("pretrain/train.py", "--config", write_config(run))
    assert done.code == 0, done.err
    found: dict[str, dict[str, float]] = {}
    for line in read_metrics(run):
        found.setdefault(str(line["step"]), {}).update(line)
    for step, values in json.loads((FORMER / "expected.json").read_text())["metrics"].items():
        assert {name: found[step][name] for name in values} == pytest.approx(values, rel=1e-5), step


def test_the_export_of_a_former_checkpoint_draws_the_pictures_that_its_own_drew(
    commands: CommandServer, tmp_path: Path
):
    export, output = tmp_path / "export", tmp_path / "drawn"
    words = ("--checkpoint", CHECKPOINT, "--vq", FORMER / "vq", "--output", export)
    done = commands.run("tools/convert_to_hf.py", *words)
    assert done.code == 0, done.err
    words = ("--prompt", "red apple", "--num-images", 2, "--output", output, "--device", "cpu")
    done = commands.run("tools/generate.py", "--model", export, *words)
    assert done.code == 0, done.err
    for name in ("0000-00.png", "0000-01.png"):
        pictures = (np.asarray(Image.open(folder / name)).astype(int) for folder in (output, FORMER))
        assert abs(np.subtract(*pictures)).max() <= 1  # its decoder's rounding differed with the number of threads
