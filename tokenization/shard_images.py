#!/usr/bin/env python
"""Encode corpora of pictures and text into code shards that training reads.

Inputs, told apart by their content: a folder with pictures and a .jsonl of captions, WebDataset .tar files, .parquet
with pictures inside, and plain text (.jsonl or .parquet with only "text"). The output is a dataset of MDS shards with
manifest.json, lengths.npz, and rejects.jsonl for what could not be used.

Stop it whenever you like: the same command goes on from there, and the result is the same to the last byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import warnings
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from model.errors import UserError, run_command

if TYPE_CHECKING:
    from tokenization.encode import Stopwatch
    from tokenization.pipeline import Part
    from tokenization.text_tokenizer import TextTokenizer
    from tokenization.vq_base import VQ

def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/shard_images.py --input work/corpus/train/folder --output work/shards "
        "--vq openmoji-64 --tokenizer work/tokenizer --workers 2",
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files or folders, each PATH or NAME=PATH; NAME (default: the folder's) becomes the documents' source",
    )
    add("--output", type=Path, required=True, help="dataset folder to make, or to finish")
    add("--vq", required=True, help="image tokenizer: a shipped name or a folder")
    add("--tokenizer", type=Path, required=True, help="folder with the base model's tokenizer.json")
    add(
        "--workers",
        type=int,
        default=min(8, len(os.sched_getaffinity(0))),
        help="threads that decode and tokenize; 0 means none beside the encoder's (default: %(default)s)",
    )
    add("--batch-size", type=int, default=32, help="pictures encoded at once (default: %(default)s)")
    add("--image-size", type=int, help="side in pixels (default: the image tokenizer's)")
    add("--device", help="where the image tokenizer runs (default: cuda if there is one, else cpu)")
    add(
        "--max-rejects",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="give up when a larger share of the documents is rejected (default: %(default)s)",
    )
    add(
        "--samples-per-part",
        type=int,
        default=1024,
        help="documents that are published together, the most that a kill can lose (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    for name in ("batch_size", "samples_per_part", "image_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.workers < 0:
        parser.error(f"--workers must be 0 or more, got {options.workers}")
    if not 0 <= options.max_rejects <= 1:
        parser.error(f"--max-rejects is a share between 0 and 1, got {options.max_rejects}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 1 if there were too many rejects, or a file could not be read or written."""
    options = parse_arguments(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\b")  # what Pillow warns of is refused, or does not matter

    from tokenization.encode import Stopwatch
    from tokenization.job import describe_job, locked, start_or_continue
    from tokenization.pipeline import plan_parts
    from tokenization.readers import open_corpora
    from tokenization.text_tokenizer import load_text_tokenizer

    startup = Stopwatch()
    corpora = open_corpora(options.input)
    for corpus in corpora:
        say(corpus.describe())
    tokenizer = load_text_tokenizer(options.tokenizer)
    vq = open_vq(options.vq, options.device)
    image_size = options.image_size or vq.image_size
    if image_size % vq.downsample:
        raise UserError(
            f"--image-size {image_size} is not a multiple of {vq.downsample}, the pixels per code of {vq.name!r}"
        )
    parts = plan_parts(corpora, options.samples_per_part)
    job = describe_job(corpora, vq, tokenizer, image_size, options.samples_per_part)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{options.output}: cannot be made a folder: {error.strerror}") from error
    with locked(options.output):
        job = start_or_continue(options.output, job)
        if is_finished(options.output):
            return 0
        try:
            return run(options, job, parts, vq, tokenizer, startup)
        except OSError as error:
            where, what = error.filename or options.output, error.strerror or error
            say(f"error: {where}: {what}; mend that and run the same command again, it goes on after the last part")
            return 1


def run(
    options: argparse.Namespace,
    job: dict[str, Any],
    parts: list[Part],
    vq: VQ,
    tokenizer: TextTokenizer,
    startup: Stopwatch,
) -> int:
    """Make the parts that are not there yet, then the dataset's own files, and say where the time went."""
    from tqdm import tqdm

    from tokenization.encode import PartCoder, RejectLimit, Stopwatch, TooManyRejects
    from tokenization.manifest import REJECTS, finish_dataset, write_rejects
    from tokenization.parts import mds_writer, published_parts, write_part
    from tokenization.pipeline import CHUNK, prefetched, prepare, read_chunks

    records = published_parts(options.output, len(parts), warn=lambda line: say(f"warning: {line}"))
    todo = [part for part in parts if part.index not in records]
    total = sum(part.stop - part.start for part in parts)
    done = total - sum(part.stop - part.start for part in todo)
    limit = RejectLimit(options.max_rejects)
    seen = {(record.source, identity) for record in records.values() for identity in record.ids}
    mds_writer()  # importing it takes seconds, which belong to the start
    startup_seconds, watch = startup.elapsed(), Stopwatch()
    coder = PartCoder(vq, options.batch_size, limit, watch, seen)
    ahead = 2 * (options.workers + options.batch_size // CHUNK + 1)
    work = partial(prepare, tokenizer=tokenizer, image_size=job["vq"]["image_size"])
    say(f"encoding {len(todo)} parts" + (f", {len(records)} are there already" if records else ""))
    pace = 0.5 if sys.stderr.isatty() else 30
    try:
        for record in records.values():
            limit.count(len(record.ids) + len(record.rejects), record.reasons())
        with (
            closing(prefetched(read_chunks(todo), work, options.workers, ahead)) as chunks,
            tqdm(total=total, initial=done, unit="doc", mininterval=pace) as bar,
        ):
            for part in todo:
                documents = coder.code(chunks, bar.update)
                with watch.measure("writing"):
                    record = write_part(options.output, part.index, part.corpus.source, documents, coder.rejects)
                records[part.index] = record
                coder.rejects = []
        limit.judge_all()
    except TooManyRejects as error:
        known = [reject for index in sorted(records) for reject in records[index].rejects]
        write_rejects(options.output, known + [asdict(reject) for reject in coder.rejects])
        say(f"error: {error}; see {options.output / REJECTS}")
        return 1
    with watch.measure("writing"):
        manifest = finish_dataset(options.output, job, [records[part.index] for part in parts])
    report(options.output, manifest, watch, startup_seconds, sum(sum(records[part.index].pictures) for part in todo))
    return 0


def open_vq(name: str, device: str | None) -> VQ:
    """The image tokenizer on the device asked for, by default the GPU if there is one."""
    import torch

    from tokenization.vq import load_vq

    try:
        return load_vq(name, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        if device is None:
            raise
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def is_finished(output: Path) -> bool:
    """Whether the dataset is complete and sound, which is said; if it is damaged, it is opened for repair."""
    from tokenization.manifest import MANIFEST
    from tokenization.shards import open_dataset

    if not (output / MANIFEST).exists():
        return False
    try:
        dataset = open_dataset(output)
        dataset.verify()
    except UserError as error:
        say(f"warning: {error}")
        (output / MANIFEST).unlink()
        return False
    say(f"{output}: finished already, {len(dataset):,} documents, all shards sound; nothing to do")
    return True


def report(output: Path, manifest: dict[str, Any], watch: Stopwatch, startup: float, pictures: int) -> None:
    """What was made, and how the wall time was spent; the encoder should have most of it."""
    counts, seconds = manifest["counts"], watch.elapsed()
    rejected = sum(manifest["rejects"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest["rejects"].items())
    say(
        f"{output}: {counts['documents']:,} documents, {counts['pictures']:,} pictures, {counts['texts']:,} texts, "
        f"{len(manifest['shards'])} shards, {rejected:,} rejected" + (f" ({reasons})" if reasons else "")
    )
    shares = ", ".join(f"{what} {watch.seconds[what] / seconds:.0%}" for what in ("waiting for input", "writing"))
    say(
        f"encoder busy {watch.seconds['encoding'] / seconds:.0%} of {seconds:.1f} s ({shares}), "
        f"{pictures / seconds:.1f} pictures/s; starting up took {startup:.1f} s before that"
    )


def say(line: str) -> None:
    """A line for the user; standard output stays free."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
