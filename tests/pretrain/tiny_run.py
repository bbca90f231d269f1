"""A tiny training run: real pictures and captions, a random image tokenizer, and a model of some thousand weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tests.commands import CommandServer
from tests.tokenization.corpora import SHAPED_SIZES, shaped_corpus

STEPS = 7
SPEEDS = (
    "tok_per_sec_per_gpu",
    "tflops_per_gpu",
    "data_wait_pct",
    "peak_memory_gib",
)  # what differs between two runs of the same thing


@dataclass(frozen=True)
class TinyData:
    """Folders made once a session: picture corpus, text tokenizer, two image tokenizers, shards made with the first."""

    corpus: Path
    tokenizer: Path
    vq: Path
    other_vq: Path
    train: Path
    heldout: Path


def save_tiny_vq(folder: Path, seed: int) -> Path:
    """A random VQModel for 32 x 32 pixels: 4 x 4 codes of 64."""
    import torch
    from diffusers import VQModel

    torch.manual_seed(seed)
    levels = 4
    model = VQModel(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        sample_size=32,
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)  # so that pictures use many codes
    model.save_pretrained(folder)
    (folder / "preprocess.json").write_text(json.dumps({"image_size": 32, "name": f"tiny-{seed}"}))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer) -> TinyData:
    """The folders, of this test session."""
    return build_tiny_data(tmp_path_factory.mktemp("tiny"), commands)


@pytest.fixture(scope="session")
def shaped_data(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer, tiny_data: TinyData) -> TinyData:
    """The same tokenizers, and shards of pictures of noise in the nine shapes of `--shapes aspect` at 4 x 4 codes."""
    root = tmp_path_factory.mktemp("shaped")
    data = replace(tiny_data, corpus=root / "corpus", train=root / "train", heldout=root / "heldout")
    for output, times in ((data.train, 4), (data.heldout, 1)):
        corpus = shaped_corpus(root / "corpus" / output.name, SHAPED_SIZES * times)
        done = commands.run(
            "tokenization/shard_images.py",
            "--input",
            corpus,
            "--output",
            output,
            "--vq",
            data.vq,
            "--tokenizer",
            data.tokenizer,
            "--workers",
            0,
            "--shapes",
            "aspect",
        )
        assert done.code == 0, done.err
    return data


def build_tiny_data(root: Path, commands: CommandServer) -> TinyData:
    """Make the folders with the project's own commands."""
    data = TinyData(*(root / name for name in ("corpus", "tokenizer", "vq", "other_vq", "train", "heldout")))

    def run(script: str, *arguments: object) -> None:
        done = commands.run(script, *arguments)
        assert done.code == 0, done.err

    run("tokenization/demo_corpus.py", "--output", data.corpus, "--size", 32, "--limit", 48, "--heldout", 0.25)
    captions = data.corpus / "train/folder/captions.jsonl"
    run("tokenization/train_tokenizer.py", "--captions", captions, "--output", data.tokenizer, "--vocab-size", 400)
    save_tiny_vq(data.vq, seed=0)
    save_tiny_vq(data.other_vq, seed=1)
    for output in (data.train, data.heldout):
        pictures = data.corpus / output.name / "folder"
        run(
            "tokenization/shard_images.py",
            "--input",
            pictures,
            "--output",
            output,
            "--vq",
            data.vq,
            "--tokenizer",
            data.tokenizer,
            "--workers",
            0,
        )
    return data


def config_values(data: TinyData, run: Path) -> dict:
    """A complete configuration, as the values of a YAML file."""
    return {
        "run": {"folder": str(run), "steps": STEPS, "seed": 3, "threads": 1},
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "shallow": 1,
            "deep": 1,
            "rope_theta": 10_000.0,
        },
        "data": {
            "tokenizer": str(data.tokenizer),
            "vq": str(data.vq),
            "sources": [{"path": str(data.train)}],
            "heldout": str(data.heldout),
            "sequence_length": 128,
            "row_multiple": 4,
            "global_batch_size": 2,
            "code_noise": 0.5,
        },
        "optim": {"lr": 1e-2, "final_lr": 1e-3, "warmup_steps": 2, "dropout": 0.1},
        "checkpoint": {"every": 2, "keep": 2},
        "log": {"every": 1, "tensorboard": False, "heldout_every": 3, "heldout_rows": 2},
    }


def write_config(data: TinyData, run: Path) -> Path:
    """The YAML file of a run, beside its folder."""
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_values(data, run), sort_keys=False))
    return path


def read_metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without the speeds: what two equal runs have in common, to the last bit."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in SPEEDS} for line in lines]


def checkpoint_names(run: Path) -> list[str]:
    """What lies in the checkpoints folder."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())
