#!/usr/bin/env python
"""Benchmark of data loaders in rows per second of CPU time: this one, another checkout's, StreamingDataset and litdata,
on one dataset.

Each reads the same documents in a process of its own, one after the other in every round. The loaders of this project make whole
rows of them (planning, packing, ids, labels, permutation); of the two peers only documents are asked, whose ids and codes
are looked at, and a row is as many tokens. litdata reads a copy in its own format. Shards are read once before.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import json
import statistics
import subprocess
import tempfile

from pretrain.system.errors import RunFailed, run_command
from tools.benchmarks.checkouts import FIRST_OF, parsed

ROWS = (
    FIRST_OF
    + """
import gc, hashlib, json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
first_of("pretrain.system.cpu_memory:keep_freed_memory", "model.cpu_memory:keep_freed_memory")()  # as a training process does
from model.prompts import DEFAULT_TEMPLATES
from model.vocabulary import Vocabulary
from pretrain.loader import RowDataset
RowSource = first_of("pretrain.loader:RowSource", "pretrain.loader:Source")
from pretrain.rows import RowSize
from pretrain.tasks import TaskShares, tokenize_prompts
folder, count, length = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
prompts = tokenize_prompts(lambda text: list(text.encode()), Vocabulary(151936, 8192, 151652, 151653, 151643), DEFAULT_TEMPLATES)
rows = RowDataset([RowSource(folder)], prompts, TaskShares(0.5, 0.1, False), RowSize(length, 8), 0)
for dataset in rows.datasets:
    dataset.verify()
rows[0]
gc.collect()
gc.freeze()  # one collection of all that is imported costs as much as a hundred rows, and falls into some rounds
digest, began = hashlib.sha256(), time.process_time()
made = [rows[number] for number in range(count)]
seconds = time.process_time() - began
for row in made:
    digest.update(row.ids.numpy().tobytes() + row.labels.numpy().tobytes() + row.to_document.numpy().tobytes())
print(json.dumps([count / seconds, digest.hexdigest()]))
"""
)
DOCUMENTS = """
import gc, json, sys, time
kind, folder, count, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, sys.argv[5])
from pretrain.system.light_imports import lazy_packages, leave_torchvision_out
leave_torchvision_out()
if kind == "streaming":
    lazy_packages("streaming")  # whose __init__ wants torchvision, which its data set does not use
    from streaming.base.dataset import StreamingDataset
    documents = StreamingDataset(local=folder, shuffle=False, batch_size=1)
else:
    from litdata import StreamingDataset
    documents = StreamingDataset(folder, shuffle=False)
def read(tokens):
    for sample in documents:
        tokens -= len(sample["text_ids"]) + len(sample["codes"])
        if tokens <= 0:
            return
read(length)
gc.collect()
gc.freeze()
began = time.process_time()
read(count * length)
print(json.dumps([count / (time.process_time() - began), ""]))
"""
COPY = """
import sys
sys.path.insert(0, sys.argv[1])
import litdata
from tokenization.shards import open_dataset
dataset = open_dataset(sys.argv[2])
def document(number):
    sample = dataset[number]
    return {name: sample[name].copy() for name in ("text_ids", "codes")}
if __name__ == "__main__":
    litdata.optimize(fn=document, inputs=list(range(len(dataset))), output_dir=sys.argv[3], chunk_bytes="64MB", num_workers=1)
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/reading_peers.py --shards work/data/shards/train --base ../before",
    )
    add = parser.add_argument
    add("--shards", type=Path, help="dataset folder of shard_images.py (default: made, of random ids and codes)")
    add(
        "--documents",
        type=int,
        default=8000,
        help="of the made one: two thirds captions of 20 to 120 tokens with a picture of 1,024 codes, "
        "one third texts of 200 to 1,500 (default: %(default)s)",
    )
    add("--base", type=Path, help="another checkout of this project")
    add("--python", default=sys.executable, help="a Python that has litdata beside all else (default: this one)")
    add("--rows", type=int, default=200, help="rows a round (default: %(default)s)")
    add("--sequence-length", "--row-length", type=int, default=10240, help="tokens of a row (default: %(default)s)")
    add("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    return parsed(parser)


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards.resolve() if arguments.shards else made(Path(folder, "shards"), arguments.documents)
        copy, script = Path(folder, "litdata"), Path(folder, "write_litdata.py")
        script.write_text(COPY)
        run([arguments.python, str(script), str(ROOT), str(shards), str(copy)])
        readers = {"this loader": (ROWS, str(ROOT), shards)}
        if arguments.base:
            readers["base"] = (ROWS, str(arguments.base.resolve()), shards)
        readers |= {"StreamingDataset": (DOCUMENTS, "streaming", shards), "litdata": (DOCUMENTS, "litdata", copy)}
        rates: dict[str, list] = {name: [] for name in readers}
        digests = {}
        for _ in range(arguments.rounds):
            for name, (code, what, source) in readers.items():
                words = [
                    arguments.python,
                    "-c",
                    code,
                    what,
                    str(source),
                    str(arguments.rows),
                    str(arguments.sequence_length),
                    str(ROOT),
                ]
                rate, digests[name] = json.loads(run(words).splitlines()[-1])
                rates[name].append(rate)
    for name, found in rates.items():
        ratios = [ours / other for ours, other in zip(rates["this loader"], found)]
        print(
            f"{name}: {statistics.median(found):,.0f} rows a processor second ({min(found):,.0f} to {max(found):,.0f}); this loader "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if arguments.base:
        print("rows are the same to the last bit" if digests["this loader"] == digests["base"] else "ROWS DIFFER")
    return 0


def made(folder: Path, count: int) -> Path:
    """A dataset of random ids and codes, the same each time."""
    from dataclasses import asdict

    import numpy

    from tokenization.filters import Filters
    from tokenization.manifest import finish_dataset
    from tokenization.parts import FileRecord, write_part
    from tokenization.readers.document import CAPTION_PAIR, TEXT
    from tokenization.sample import CodedDocument

    dice, documents = numpy.random.default_rng(0), []
    for number in range(count):
        pictured = number % 3 != 2
        ids = dice.integers(0, 151_000, dice.integers(20, 121) if pictured else dice.integers(200, 1501)).astype(
            numpy.uint32
        )
        codes = [dice.integers(0, 8192, (32, 32)).astype(numpy.uint16)] if pictured else []
        layout = numpy.array([1, 0] if pictured else [0], numpy.uint8)
        kind = CAPTION_PAIR if pictured else TEXT
        documents.append(CodedDocument(f"{number:06d}", "made", kind, ("x" * (4 * len(ids)),), [ids], codes, layout))
    (folder / "parts").mkdir(parents=True)
    record = write_part(folder, 0, 0, "made", "made", documents, [])
    vq = {"name": "none", "fingerprint": "0" * 64, "codebook_size": 8192, "downsample": 16, "image_size": 512}
    job = {
        "filters": asdict(Filters()),
        "vq": vq,
        "tokenizer": {"name": "none", "sha256": "0" * 64, "vocab_size": 151_936},
        "inputs": [],
    }
    finish_dataset(folder, job, [FileRecord(0, "made", "made", count, [record])])
    return folder


def run(words: list[str]) -> str:
    """Output of a command. Raises RunFailed if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"{words[0]} {words[1][:60]!r} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    run_command(main)
