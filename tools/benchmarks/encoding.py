#!/usr/bin/env python
"""Benchmark of shard_images.py in images per second: this checkout, another one, and a plain loop with batches of 32,
in turn.

All read the same tars of JPEGs, each in a process of its own. The two checkouts run their command as a user types it; the loop
decodes, encodes whole batches with torch's own threads, and writes codes as JSON lines. Starting up is told apart. At the end the codes of the
checkouts are compared with those of the loop, which round otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import json
import re
import statistics
import subprocess
import tempfile

from pretrain.system.errors import RunFailed, run_command
from tools.benchmarks.checkouts import parsed

LOOP = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from tokenization.preprocess import open_image, preprocess
from tokenization.readers import open_corpus
from tokenization.vq import load_vq
from tokenization.vq_base import pixels_of
tars, name, output, size = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
vq, corpus = load_vq(name, device="cpu"), open_corpus(tars)
began, pictures, lines, done = time.monotonic(), [], open(output, "w"), 0
def encode():
    global pictures, done
    if pictures:
        with torch.no_grad():
            for codes in vq._encode(pixels_of(pictures)):
                lines.write(json.dumps(codes.flatten().tolist()) + "\\n")
    done, pictures = done + len(pictures), []
for file in corpus.files:
    with corpus.open(file) as opened:
        for _, document in corpus.read(opened, 0):
            pictures.append(preprocess(open_image(document.pictures[0].data), vq.image_size))
            if len(pictures) == size:
                encode()
encode()
lines.close()
print(done / (time.monotonic() - began))
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/encoding.py --base ../before --vq openmoji-64 --pictures 600",
    )
    add = parser.add_argument
    add("--base", type=Path, help="another checkout of this project")
    add(
        "--vq",
        default="openmoji-64",
        help="a name, a folder, or chameleon-512: full size, random weights (default: %(default)s)",
    )
    add("--pictures", type=int, default=600, help="pictures a round (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="of the loop (default: %(default)s)")
    add("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    return parsed(parser)


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    from tools.benchmarks.tokenizing import make_tars, tokenizers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments.device = "cpu"
        vq, _ = tokenizers(arguments, folder)
        vq_name = arguments.vq
        if arguments.vq == "chameleon-512":
            import torch

            torch.nn.init.normal_(
                vq.model.quantize.embedding.weight
            )  # diffusers' own is too narrow: each code would be rounding
            vq.save(folder / "vq")
            vq_name = str(folder / "vq")
        size = vq.image_size
        del vq
        tars = make_tars(folder / "tars", arguments.pictures, size)
        checkouts = {"this checkout": ROOT, **({"base": arguments.base.resolve()} if arguments.base else {})}
        rates: dict[str, list[float]] = {name: [] for name in (*checkouts, "loop")}
        starts: dict[str, list[float]] = {name: [] for name in checkouts}
        outputs = {}
        for number in range(arguments.rounds):
            for which, checkout in checkouts.items():
                output = folder / f"{which.replace(' ', '-')}-{number}"
                words = [
                    str(checkout / "tokenization/shard_images.py"),
                    "--input",
                    str(tars),
                    "--output",
                    str(output),
                    "--vq",
                    vq_name,
                    "--tokenizer",
                    str(folder),
                    "--device",
                    "cpu",
                ]
                outputs[which] = run(words)
                match = re.search(r"([\d.]+) pictures/s; starting up took ([\d.]+) s", outputs[which])
                assert match, outputs[which]
                rate, start = match.groups()
                rates[which].append(float(rate))
                starts[which].append(float(start))
            loop = ["-c", LOOP, str(ROOT), str(tars), vq_name, str(folder / "codes.jsonl"), str(arguments.batch_size)]
            rates["loop"].append(float(run(loop).splitlines()[0]))
        for which, found in rates.items():
            ratios = [other / own for own, other in zip(found, rates["this checkout"], strict=True)]
            start = f", starting up {statistics.median(starts[which]):.1f} s" if which in starts else ""
            print(
                f"{which}: {statistics.median(found):.3g} pictures/s ({min(found):.3g} to {max(found):.3g}){start}; this checkout "
                f"{statistics.median(ratios):.2f} times as many ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print("\n".join(outputs["this checkout"].strip().splitlines()[-2:]))
        compare(folder, list(checkouts))
    return 0


def compare(folder: Path, names: list[str]) -> None:
    """Print how many codes differ from those of the plain loop."""
    from tokenization.shards import open_dataset

    loop = [json.loads(line) for line in (folder / "codes.jsonl").read_text().splitlines()]
    for name in names:
        dataset = open_dataset(folder / f"{name.replace(' ', '-')}-0")
        pairs = [
            (int(a), b)
            for number, codes in enumerate(loop)
            for a, b in zip(dataset[number]["codes"], codes, strict=True)
        ]
        print(f"{name}: {sum(a != b for a, b in pairs):,} of {len(pairs):,} codes differ from the loop's")


def run(words: list[str]) -> str:
    """Output of a Python command. Raises RunFailed if it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    run_command(main)
