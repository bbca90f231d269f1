"""A short training run and what tools/convert_to_hf.py made of it, for tests of exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain import checkpoint
from tests.commands import CommandServer, Finished
from tests.pretrain.tiny_run import TinyData, write_config


@dataclass(frozen=True)
class Exported:
    """A trained checkpoint and what the command made of its run folder."""

    run: Path
    checkpoint: Path
    folder: Path
    command: Finished


def convert(server: CommandServer, source: Path, output: Path, *arguments: object) -> Finished:
    return server.run("tools/convert_to_hf.py", "--checkpoint", source, "--output", output, *arguments)


def train_and_export(server: CommandServer, data: TinyData, root: Path, name: str, *overrides: str) -> Exported:
    """Train three steps and export."""
    run = root / f"run-{name}"
    trained = server.run("pretrain/train.py", "--config", write_config(data, run), "run.steps=3", *overrides)
    assert trained.code == 0, trained.err
    done = convert(server, run, root / name)
    assert done.code == 0, done.err
    return Exported(run, checkpoint.folder_of(run, 3), root / name, done)
