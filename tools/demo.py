#!/usr/bin/env python
"""Run the whole path on the demo corpus: corpus, shards, training, export, and a report page.

The preset demo-edit goes on from the model of the preset demo, and teaches it to edit pictures. Each stage is the command
that a user would type, printed before it runs. A stage that is finished is not repeated, and training goes on from its
newest checkpoint, so an interrupted demo is continued by the same command.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import argparse
import json
import os
import shlex
import subprocess
import time

from pretrain.system.errors import UserError, run_command
from pretrain.system.threads import usable_cores
from tokenization.files import write_text
from tools.runs.processes import run_processes

PRESETS = {
    "demo": "pretrain/configs/demo.yaml",
    "demo-long": "pretrain/configs/demo_long.yaml",
    "demo-edit": "pretrain/configs/demo_edit.yaml",
}
EDITS = "demo-edit"
VQ = "openmoji-64"
IMAGE_SIZE = 40
"""Pixels: 25 codes a picture in place of 64, so that the tokens of ten minutes show each picture more than twice as often."""
ROWS = 2
"""Packed rows per step of the demo's configurations: as many processes train."""
MOVED_COPIES = 4
"""Of each picture, in the longer training: it sees a picture tens of times, and a copy in another place has other codes."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/demo.py --preset demo",
    )
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="how much to train (default: demo)")
    parser.add_argument("--folder", type=Path, default=Path("work"), help="where everything is put (default: work)")
    parser.add_argument("--pictures", type=int, default=0, help="pictures in the corpus (0: all), for a quick look")
    parser.add_argument("--edits", type=int, default=0, help="edits of a kind (0: all), for a quick look at demo-edit")
    parser.add_argument("--prompts", type=int, default=300, help="seen names to draw for the report (default: 300)")
    parser.add_argument(
        "--processes", type=int, default=0, help="processes that train (default: 2; 1 on one core, or with a GPU)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="training settings to change")
    arguments = parser.parse_args()
    if arguments.processes < 0:
        parser.error(f"--processes {arguments.processes}: give 1, {ROWS}, or 0 for as many as there are cores")
    return arguments


def stages(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(name, command) of each stage; data is shared by all presets, a preset has a run, an export and a report."""
    data, out = arguments.folder / "data", arguments.folder / arguments.preset
    shard = sharding(data)
    sources, moved = [f"{{path: {data}/shards/train, weight: 1.0}}"], []
    if arguments.preset == "demo-long":  # as many moved pictures as others in an epoch
        sources.append(f"{{path: {data}/shards/moved, weight: {1 / MOVED_COPIES}}}")
        moved = [
            (
                "moved copies",
                [
                    "tokenization/shift_pictures.py",
                    "--input",
                    f"{data}/corpus/train/webdataset",
                    "--copies",
                    str(MOVED_COPIES),
                    "--output",
                    f"{data}/moved",
                ],
            ),
            ("moved shards", [*shard, "--input", f"{data}/moved", "--output", f"{data}/shards/moved"]),
        ]
    paths = [
        f"run.folder={out}/run",
        f"data.tokenizer={data}/tokenizer",
        f"data.vq={VQ}",
        f"data.sources=[{', '.join(sources)}]",
        f"data.heldout={data}/shards/heldout",
    ]
    corpus = ["tokenization/demo_corpus.py", "--output", f"{data}/corpus"]
    report = ["tools/demo_report.py", "--model", f"{out}/model", "--run", f"{out}/run", "--data", str(data)]
    return [
        ("corpus", [*corpus, *(["--limit", str(arguments.pictures)] if arguments.pictures else [])]),
        (
            "tokenizer",
            [
                "tokenization/train_tokenizer.py",
                "--captions",
                f"{data}/corpus/train/folder/captions.jsonl",
                "--output",
                f"{data}/tokenizer",
            ],
        ),
        ("shards", [*shard, "--input", f"{data}/corpus/train/webdataset", "--output", f"{data}/shards/train"]),
        ("held-out shards", [*shard, "--input", f"{data}/corpus/heldout/folder", "--output", f"{data}/shards/heldout"]),
        *moved,
        ("training", ["pretrain/train.py", "--config", PRESETS[arguments.preset], *paths, *arguments.set]),
        ("export", ["tools/convert_to_hf.py", "--checkpoint", f"{out}/run", "--output", f"{out}/model"]),
        ("report", [*report, "--prompts", str(arguments.prompts), "--output", f"{out}/report"]),
    ]


def edit_stages(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Stages of the preset demo-edit, which needs the corpus, the tokenizer and the run of the preset demo."""
    data, out, start = arguments.folder / "data", arguments.folder / EDITS, arguments.folder / "demo" / "run"
    if not list(start.glob("checkpoints/step_*")):
        raise UserError(f"{start} has no checkpoint to go on from: run make demo first (tools/demo.py --preset demo)")
    shard = sharding(data)
    paths = [
        f"run.folder={out}/run",
        f"run.init_from={start}",
        f"data.tokenizer={data}/tokenizer",
        f"data.vq={VQ}",
        f"data.sources=[{{path: {data}/edit-shards/train, weight: 1.0}}]",
        f"data.heldout={data}/edit-shards/heldout",
    ]
    corpus = ["tokenization/demo_edits.py", "--corpus", f"{data}/corpus", "--output", f"{data}/edits"]
    few = ["--train", str(arguments.edits), "--heldout", str(arguments.edits)] if arguments.edits else []
    return [
        ("edits", [*corpus, *few]),
        ("shards", [*shard, "--input", f"{data}/edits/train", "--output", f"{data}/edit-shards/train"]),
        ("held-out shards", [*shard, "--input", f"{data}/edits/heldout", "--output", f"{data}/edit-shards/heldout"]),
        ("training", ["pretrain/train.py", "--config", PRESETS[EDITS], *paths, *arguments.set]),
        ("export", ["tools/convert_to_hf.py", "--checkpoint", f"{out}/run", "--output", f"{out}/model"]),
        (
            "report",
            [
                "tools/edit_report.py",
                "--model",
                f"{out}/model",
                "--run",
                f"{out}/run",
                "--edits",
                f"{data}/edits",
                "--output",
                f"{out}/report",
            ],
        ),
    ]


def sharding(data: Path) -> list[str]:
    """The command that makes shards, without input and output."""
    return [
        "tokenization/shard_images.py",
        "--vq",
        VQ,
        "--tokenizer",
        f"{data}/tokenizer",
        "--image-size",
        str(IMAGE_SIZE),
    ]


def training_processes(asked: int) -> int:
    """Number of processes that train: what was asked for, else one for each of a step's two rows where there are cores.

    Rows of the demo are too short for two threads, which wait for each other longer than they compute.
    """
    if asked:
        return asked
    import torch

    return 1 if torch.cuda.is_available() else min(ROWS, usable_cores())


def is_done(name: str, data: Path) -> bool:
    """Whether a stage's result is there, for stages that would repeat their work. The others check it themselves."""
    return name == "tokenizer" and (data / "tokenizer" / "tokenizer.json").exists()


def main() -> int:
    """Run the stages in order; stop at the first failure, with its exit code."""
    arguments = parse_arguments()
    planned = edit_stages(arguments) if arguments.preset == EDITS else stages(arguments)
    out = arguments.folder / arguments.preset
    out.mkdir(parents=True, exist_ok=True)
    timings = out / "timings.json"
    seconds = json.loads(timings.read_text()) if timings.exists() else {}
    for name, command in planned:
        if is_done(name, arguments.folder / "data"):
            continue
        count = training_processes(arguments.processes) if name == "training" else 1
        start = f"torchrun --standalone --nproc-per-node {count}" if count > 1 else "python"
        print(f"\n== {name}\n$ {start} {shlex.join(command)}", flush=True)
        begin = time.time()
        words = [str(ROOT / command[0]), *command[1:]]
        if count > 1:
            code = run_processes(words, count, _environment())
        else:
            code = subprocess.run([sys.executable, *words], env=_environment()).returncode
        seconds[name] = round(seconds.get(name, 0.0) + time.time() - begin, 1)
        write_text(timings, json.dumps(seconds, indent=1) + "\n")
        if code in (130, -2):
            raise KeyboardInterrupt
        if code == 2:
            raise UserError(f"the stage {name} refused its input, see above: mend it and run the same command again")
        if code:
            print(f"the stage {name} failed with exit code {code}, see above", file=sys.stderr)
            return 1
    print(
        f"\n{out}/report/report.html is ready. Stages, in seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    )
    return 0


def _environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    run_command(main)
