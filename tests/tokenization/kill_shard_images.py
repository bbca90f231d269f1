#!/usr/bin/env python
"""Kill shard_images at random moments, over and over, with other numbers of workers each time: is anything lost?

A corpus of small pictures is made in three layouts (or one is given), and encoded once by one worker, undisturbed. The
pictures of the layouts are in part the same, and left out of training where they come again (--duplicate-bits). Then
one to four workers are started and killed (SIGKILL), all or only some of them, again and again. Whenever the dataset is
finished nevertheless, it is compared with the undisturbed one, byte by byte, and the next round begins with nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter

from pretrain.system.errors import UserError, run_command


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tests/tokenization/kill_shard_images.py --pictures 2000 --kills 20",
    )
    add = parser.add_argument
    add("--pictures", type=int, default=20_000, help="size of the corpus that is made (default: %(default)s)")
    add("--input", nargs="+", help="corpora in its place, as for shard_images.py")
    add("--vq", help="image tokenizer (default: a random one for pictures of 16 pixels)")
    add("--tokenizer", help="folder with tokenizer.json (default: one id a byte)")
    add("--samples-per-part", type=int, default=256, help="as for shard_images.py (default: %(default)s)")
    add("--duplicate-bits", type=int, default=2, help="as for shard_images.py, -1 for none (default: %(default)s)")
    add("--kills", type=int, default=20, help="rounds that end by a kill (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: 0)")
    return parser.parse_args()


def main() -> int:
    """Run the trial; exit code 1 if a dataset differs from the undisturbed one."""
    arguments = parse_arguments()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments, Path(folder))
        reference, output = Path(folder, "reference"), Path(folder, "output")
        began = time.monotonic()
        (status,) = wait(start(arguments, reference, 1))
        if status:
            raise UserError(
                f"the undisturbed run failed with status {status}: run shard_images.py on this input by hand"
            )
        work = time.monotonic() - began
        if complaint := doubles(reference):
            print(f"FAILED without a kill: {complaint}")
            return 1
        print(f"undisturbed, one worker: {work:.1f} s; rejected {rejects_of(reference)}", flush=True)
        rounds, processes, finished, counts = 0, 0, 0, Counter()
        while rounds < arguments.kills or output.exists():
            count = moments.randint(1, 4)
            running = start(arguments, output, count)
            if rounds < arguments.kills:
                time.sleep(moments.uniform(0, work / 2 / count))
                victims = running if moments.random() < 0.7 else running[: moments.randint(1, count)]
                for process in victims:
                    os.kill(process, signal.SIGKILL)
            endings = wait(running)
            killed = sum(os.WIFSIGNALED(status) for status in endings)
            if any(status and not os.WIFSIGNALED(status) for status in endings):
                print(f"FAILED after {rounds} kills: a worker ended with {endings}")
                return 1
            if killed:
                rounds, processes = rounds + 1, processes + killed
                counts[count] += 1
                parts = len(list(output.glob("parts/0*"))) if output.exists() else 0
                print(f"kill {rounds}: {killed} of {count} workers, {parts} parts are there", flush=True)
            if (output / "manifest.json").exists():
                if complaint := difference(reference, output):
                    print(f"FAILED after {rounds} kills: {complaint}")
                    return 1
                finished += 1
                print(f"finished, the same {sum(path.is_file() for path in output.rglob('*'))} files", flush=True)
                shutil.rmtree(output)
    print(
        f"PASSED: {rounds} kills of {processes} workers ({dict(sorted(counts.items()))} rounds by number of workers), "
        f"{finished} times to the end: each document once, every byte as undisturbed"
    )
    return 0


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Make what was not given: the corpus, the image tokenizer, the text tokenizer."""
    from tests.tokenization.conftest import save_byte_tokenizer, save_vq
    from tests.tokenization.corpora import folder_corpus, parquet_corpus, tar_corpus
    from tokenization.parts import mds_writer

    mds_writer()  # imported once, here: the workers are forked
    (folder / "vq").mkdir()
    (folder / "tokenizer").mkdir()
    arguments.vq = arguments.vq or str(save_vq(folder / "vq", seed=0))
    arguments.tokenizer = arguments.tokenizer or str(save_byte_tokenizer(folder / "tokenizer"))
    if not arguments.input:
        half = arguments.pictures // 2
        tars = tar_corpus(folder / "tars", half, per_tar=max(1, half // 7))
        tables = parquet_corpus(folder / "table.parquet", arguments.pictures - half - half // 2, as_struct=True)
        arguments.input = list(map(str, (tars, tables, folder_corpus(folder / "folder", half // 2))))


def start(arguments: argparse.Namespace, output: Path, count: int) -> list[int]:
    """Fork so many workers, which share the input. Their process ids."""
    from tests.tokenization.corpora import child
    from tokenization import shard_images

    command = [
        "--input",
        *arguments.input,
        "--output",
        str(output),
        "--vq",
        arguments.vq,
        "--tokenizer",
        arguments.tokenizer,
        "--samples-per-part",
        str(arguments.samples_per_part),
        "--duplicate-bits",
        str(arguments.duplicate_bits),
    ]
    return [
        child(
            lambda worker=worker: shard_images.main([*command, "--job-index", str(worker), "--job-count", str(count)])
        )
        for worker in range(count)
    ]


def wait(processes: list[int]) -> list[int]:
    """Until they have ended; their statuses."""
    return [os.waitpid(process, 0)[1] for process in processes]


def difference(reference: Path, output: Path) -> str | None:
    """The first file in which two datasets differ, or None."""
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (reference, output)]
    for path in sorted(files[0] ^ files[1]):
        return f"{path} is in one of the two datasets only"
    for path in sorted(files[0]):
        if (reference / path).is_file() and (reference / path).read_bytes() != (output / path).read_bytes():
            return f"{path} differs from the undisturbed run"
    return None


def rejects_of(dataset: Path) -> dict[str, int]:
    """Rejects by reason, and how many documents of the shards are left out of training."""
    from tokenization.shards import open_dataset

    manifest = open_dataset(dataset).manifest
    return manifest["rejects"] | {"left out": manifest.get("left_out", 0)}


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
