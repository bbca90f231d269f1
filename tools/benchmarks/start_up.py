#!/usr/bin/env python
"""Benchmark of command start-up: CPU seconds until a missing input is refused, until libraries are loaded, and of whole
commands on next to nothing.

Each is a fresh process of this checkout and of another, in turns; the median of the repetitions. CPU seconds, because a
machine that others use too changes them little; files are in the page cache after the first turn, which is not counted.
Whole commands: a few pictures are sharded, one step is trained, exported, one picture is drawn, and a server answers once; each
checkout has data of its own making.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable

from pretrain.system.errors import RunFailed, run_command
from tools.benchmarks.checkouts import FIRST_OF, parsed

VQ = f"{FIRST_OF}\nfrom tokenization.shard_images import open_vq; open_vq('openmoji-64', None)"
MODEL = (
    "import pathlib; first_of('tools.export.folder', 'tools.export_folder'); "
    "light = importlib.import_module('pretrain.system.light_imports') if pathlib.Path('pretrain/system').is_dir() else None; "
    "getattr(light, 'import_transformers', int)(); "
    "importlib.import_module(next(f'model.hf.{path.stem}' for path in pathlib.Path('model/hf').glob('modeling_*.py')))"
)
CASES = {
    "train.py, data absent": [
        "pretrain/train.py",
        "--config",
        "pretrain/configs/demo.yaml",
        "data.sources=[{path: /absent}]",
    ],
    "convert_to_hf.py, checkpoint absent": [
        "tools/convert_to_hf.py",
        "--checkpoint",
        "/absent",
        "--output",
        "/absent/out",
    ],
    "generate.py, model absent": [
        "tools/generate.py",
        "--model",
        "/absent",
        "--prompt",
        "a",
        "--output",
        "/absent/out",
    ],
    "serve.py, model absent": ["tools/serve.py", "--model", "/absent"],
    "shard_images.py, VQ absent": [
        "tokenization/shard_images.py",
        "--input",
        "docs",
        "--output",
        "/absent/out",
        "--vq",
        "/absent",
        "--tokenizer",
        "docs",
    ],
    "train.py, libraries": [
        "-c",
        "from pretrain import runtime; runtime.install(); import pretrain.start, pretrain.engines.megatron",
    ],
    "shard_images.py, libraries": ["-c", f"{VQ}; from tokenization.parts import mds_writer; mds_writer()"],
    "convert_to_hf.py, libraries": [
        "-c",
        f"{VQ}; import pretrain.sharded_files; first_of('tools.export.model_card', 'tools.model_card')",
    ],
    "generate.py, libraries": [
        "-c",
        f"{VQ}; {MODEL}; first_of('tools.generation.results', 'tools.generation_results')",
    ],
    "serve.py, libraries": [
        "-c",
        f"{VQ}; {MODEL}; import tools.serving.app, tools.serving.worker, tools.serving.service",
    ],
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/start_up.py --base ../other-checkout --repeats 3",
    )
    parser.add_argument("--base", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words")
    parser.add_argument("--whole", action="store_true", help="whole commands, too")
    arguments = parsed(parser)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: at least 1, beside the turn that is not counted")
    return arguments


def cpu_seconds(checkout: Path, words: list[str]) -> float:
    """User and system seconds of a fresh process with one OpenMP thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    subprocess.run([sys.executable, *words], cwd=checkout, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(checkout: Path, folder: Path) -> dict[str, list[str]]:
    """Corpus and tokenizer of `checkout`; the whole commands to measure, which need each other's results in this order."""
    corpus, text = folder / "corpus", folder / "tokenizer"
    for words in (
        ["tokenization/demo_corpus.py", "--output", str(corpus), "--limit", "64"],
        [
            "tokenization/train_tokenizer.py",
            "--captions",
            f"{corpus}/train/folder/captions.jsonl",
            "--output",
            str(text),
        ],
    ):
        subprocess.run([sys.executable, *words], cwd=checkout, capture_output=True, check=True)
    shards, run, model = folder / "shards", folder / "run", folder / "model"
    data = [f"data.tokenizer={text}", f"data.sources=[{{path: {shards}, weight: 1.0}}]", f"data.heldout={shards}"]
    few = ["run.steps=1", "log.heldout_every=0", "log.samples_every=0", "log.heldout_rows=2", "run.threads=1"]
    train = ["pretrain/train.py", "--config", "pretrain/configs/demo.yaml", f"run.folder={run}", *data, *few]
    vq = ["--vq", "openmoji-64", "--tokenizer", str(text)]
    return {
        "shard_images.py, a few pictures": [
            "tokenization/shard_images.py",
            *["--input", f"{corpus}/heldout/folder", "--output", str(shards), *vq],
        ],
        "train.py, one step": train,
        "convert_to_hf.py": ["tools/convert_to_hf.py", "--checkpoint", str(run), "--output", str(model)],
        "generate.py, one picture": [
            "tools/generate.py",
            *["--model", str(model), "--prompt", "sun", "--num-images", "1", "--output", str(folder / "drawn")],
        ],
        "serve.py, one answer": ["tools/serve.py", "--model", str(model), "--port", "0"],
    }


def whole_seconds(checkout: Path, folder: Path, words: list[str]) -> float:
    """User and system seconds of a whole command; a server is asked once, then ended. Raises CalledProcessError."""
    for name in ("--output", "run.folder"):
        for before, word in zip(words, words[1:], strict=False):
            made = word if before == name else word.removeprefix(f"{name}=") if word.startswith(f"{name}=") else ""
            shutil.rmtree(made, ignore_errors=True) if made else None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=checkout, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        if "serve.py" in words[0]:
            ask(folder / "said", process)
        _, status, used = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise RunFailed(f"{' '.join(words)} in {checkout}: {(folder / 'said').read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime


def ask(said: Path, process: subprocess.Popen) -> None:
    """Wait for the server's address, get its list of models, end it."""
    while not (found := re.search(r"http://[\d.]+:\d+", said.read_text())):
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.05)
    with urllib.request.urlopen(f"{found[0]}/v1/models", timeout=60) as answer:
        answer.read()
    process.send_signal(signal.SIGTERM)


def measure(cases: dict, repeats: int, seconds: Callable[[str, str], float], sides: list[str]) -> None:
    """Print a line of the table for each case: medians of the sides, in turn, without the first turn."""
    for name in cases:
        turns = [{side: seconds(side, name) for side in sides} for _ in range(repeats + 1)]
        took = [statistics.median(turn[side] for turn in turns[1:]) for side in sides]
        ratio = f" {took[1] / took[0]:.2f} |" if len(sides) > 1 else ""
        print(f"| {name} | " + " | ".join(f"{one:.2f}" for one in took) + f" |{ratio}", flush=True)


def main() -> int:
    """Measure each case, print a table."""
    arguments = parse_arguments()
    sides = {"base": arguments.base.absolute(), "here": ROOT} if arguments.base else {"here": ROOT}
    print("| CPU seconds | " + " | ".join(sides) + (" | here / base |" if arguments.base else " |"))
    print("|---|" + "---|" * (len(sides) + bool(arguments.base)))
    some = {name: words for name, words in CASES.items() if arguments.only in name}
    measure(some, arguments.repeats, lambda side, name: cpu_seconds(sides[side], some[name]), list(sides))
    with tempfile.TemporaryDirectory() as name:
        folders = {side: Path(name) / side for side in sides}
        whole = {side: prepare(checkout, folders[side]) for side, checkout in sides.items()} if arguments.whole else {}
        for case in next(iter(whole.values()), {}):
            measure(
                {case: None},
                arguments.repeats,
                lambda side, case: whole_seconds(sides[side], folders[side], whole[side][case]),
                list(sides),
            )
    return 0


if __name__ == "__main__":
    run_command(main)
