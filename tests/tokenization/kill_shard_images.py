#!/usr/bin/env python
"""Kill shard_images at random moments, over and over, and see whether anything is lost, doubled or changed.

The job runs once undisturbed. Then it is started and killed (SIGKILL), again and again; whenever it gets to its end
nevertheless, the dataset is compared with the undisturbed one, byte by byte, and the next round begins with nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter

from model.errors import UserError, run_command


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tests/tokenization/kill_shard_images.py --input work/corpus/train/folder "
        "--vq openmoji-64 --tokenizer work/tokenizer",
    )
    parser.add_argument("--input", nargs="+", required=True, help="corpora, as for shard_images")
    parser.add_argument("--vq", required=True, help="image tokenizer, as for shard_images")
    parser.add_argument("--tokenizer", required=True, help="text tokenizer, as for shard_images")
    parser.add_argument("--workers", type=int, default=2, help="as for shard_images (default: 2)")
    parser.add_argument("--samples-per-part", type=int, default=128, help="as for shard_images (default: 128)")
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    return parser.parse_args()


def main() -> int:
    """Run the trial; exit code 1 if a dataset differs from the undisturbed one."""
    arguments = parse_arguments()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference, output, log = Path(folder, "reference"), Path(folder, "output"), Path(folder, "log")
        process = start(arguments, reference, log)
        began = time.monotonic()
        if process.wait():
            raise UserError(f"the undisturbed run failed: {log.read_text().splitlines()[-1]}")
        work = time.monotonic() - began
        if complaint := doubles(reference):
            print(f"FAILED without a kill: {complaint}")
            return 1
        print(f"undisturbed: {work:.1f} s of work after starting up", flush=True)
        kills, finished = [], 0
        while len(kills) < arguments.kills or output.exists():
            in_start_up = moments.random() < 0.2
            process = start(arguments, output, log, wait=not in_start_up)
            try:
                enough = len(kills) == arguments.kills
                process.wait(None if enough else moments.uniform(0, 5 if in_start_up else work / 2))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills.append(len(list(output.glob("parts/0*"))))
                print(f"kill {len(kills)}: {kills[-1]} parts published", flush=True)
                continue
            if process.returncode:
                print(f"FAILED after {len(kills)} kills: {log.read_text().splitlines()[-1]}")
                return 1
            if complaint := difference(reference, output):
                print(f"FAILED after {len(kills)} kills: {complaint}")
                return 1
            finished += 1
            print(f"finished, the same {sum(path.is_file() for path in output.rglob('*'))} files", flush=True)
            shutil.rmtree(output)
        print(f"PASSED: {len(kills)} kills, {finished} times to the end: each document once, every byte as undisturbed")
    return 0


def start(arguments: argparse.Namespace, output: Path, log: Path, wait: bool = True) -> subprocess.Popen[bytes]:
    """Start the command; with `wait`, return when it is through with starting up and begins to encode."""
    command = [sys.executable, "tokenization/shard_images.py", "--input", *arguments.input, "--output", str(output)]
    for name in ("vq", "tokenizer", "workers", "samples_per_part"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stderr=sink)
    while wait and process.poll() is None and b"\nencoding " not in log.read_bytes():
        time.sleep(0.02)
    return process


def difference(reference: Path, output: Path) -> str | None:
    """The first file in which two datasets differ, or None."""
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (reference, output)]
    for path in sorted(files[0] ^ files[1]):
        return f"{path} is in one of the two datasets only"
    for path in sorted(files[0]):
        if (reference / path).is_file() and (reference / path).read_bytes() != (output / path).read_bytes():
            return f"{path} differs from the undisturbed run"
    return None


def doubles(dataset: Path) -> str | None:
    """What is wrong with the ids of a dataset, or None: each document once, and as many as the manifest says."""
    from tokenization.shards import open_dataset

    opened = open_dataset(dataset)
    ids = Counter((found["source"], found["id"]) for found in opened)
    repeated = [key for key, count in ids.items() if count > 1]
    if repeated or len(ids) != opened.manifest["counts"]["documents"]:
        return f"{len(repeated)} documents are there more than once, {len(ids)} different ones in all"
    return None


if __name__ == "__main__":
    run_command(main)
