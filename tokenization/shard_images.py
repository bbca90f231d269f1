#!/usr/bin/env python
"""Encode corpora of images and text into code shards for training.

Inputs, told apart by their content: pictures with captions (a folder with a .jsonl, WebDataset .tar, .parquet),
conversations, picture editing, texts and pictures in order, and plain text; .jsonl, .json, .tar, .parquet, .txt, or a
dataset that Hugging Face's datasets saved; in a local folder or at a URL that fsspec reads. docs/data.md says more, and
tools/inspect_data.py shows what was understood. The output is a dataset of MDS shards with manifest.json, lengths/, and
rejects.jsonl for what could not be used.

Stop it whenever you like: the same command goes on from there, and the result is the same to the last byte. Several
workers share the input's files: the same command in a Slurm job array or under srun or torchrun, or with --job-index
and --job-count; the last one to finish makes the dataset of all.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any

from model.shapes import Framing, framing_of, grids_from
from pretrain.system.errors import UserError, run_command
from pretrain.system.words import counted
from tokenization.files import check_outside, output_folder
from tokenization.shard_arguments import parse_arguments

if TYPE_CHECKING:
    from tokenization.batches import BatchCounts
    from tokenization.encode import Stopwatch
    from tokenization.filters import Filters
    from tokenization.text_tokenizer import TextTokenizer
    from tokenization.vq_base import VQ
    from tokenization.worker_plan import WorkFile


REJECTS_TO_READ = 100_000
"""How many rejects are looked at for an example of each reason."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 1 if there were too many rejects, or a file could not be read or written."""
    options = parse_arguments(__doc__, arguments)
    warnings.filterwarnings(
        "ignore", module=r"PIL\b"
    )  # Pillow's warnings are about files that are refused, or do not matter

    from tokenization.encode import Stopwatch
    from tokenization.encoder_record import described, rounds_alike
    from tokenization.filters import Filters
    from tokenization.job import describe_job, locked, start_or_continue
    from tokenization.preprocess import MAX_PIXELS, check_side
    from tokenization.readers import PAIRS, open_corpora
    from tokenization.text_tokenizer import load_text_tokenizer
    from tokenization.vq import find_folder
    from tokenization.worker_plan import listed, slot_of

    grids_from(options.shapes, 32)  # an invalid word is refused before anything is read
    startup = Stopwatch()
    find_folder(options.vq)  # before corpora are listed, and before the seconds that it takes to import torch
    worker, workers = slot_of(os.environ, options.job_index, options.job_count)
    check_side(options.image_size or 1)
    corpora = open_corpora(options.input, options.image_root)
    check_outside(options.output, [corpus.path for corpus in corpora if corpus.format is PAIRS])
    for corpus in corpora:
        say(corpus.describe())
        if beside := corpus.warning():
            say(f"warning: {beside}")
    tokenizer = load_text_tokenizer(options.tokenizer)
    vq = open_vq(options.vq, options.device)
    image_size = options.image_size or vq.image_size
    if image_size % vq.downsample:
        raise UserError(
            f"--image-size {image_size} is not a multiple of {vq.downsample}, the pixels per code of {vq.name!r}"
        )
    framing = Framing(grids_from(options.shapes, image_size // vq.downsample), vq.downsample, options.fit == "pad")
    vq.check_grids(framing.grids)
    filters = Filters(
        options.min_side,
        options.max_aspect,
        options.min_text,
        options.max_text,
        options.max_pixels or MAX_PIXELS,
        options.duplicate_bits,
    )
    files = listed(corpora)
    job = describe_job(
        corpora, vq, tokenizer, framing, options.samples_per_part, filters, options.batch_size, options.draft
    )
    output_folder(options.output)
    with locked(options.output, alone=workers == 1):
        mine = job["encoder"]
        job = start_or_continue(options.output, job)
        if not rounds_alike(first := job.get("encoder", {}), mine):
            say(
                f"note: {described(first)} began this dataset, and this worker has {described(mine)}; they round "
                "otherwise, which can change single codes, so parts made again may differ"
            )
        if is_finished(options.output, worker):
            return 0
        try:
            return run(options, job, files, (worker, workers), vq, tokenizer, filters, startup)
        except OSError as error:
            where, what = error.filename or options.output, error.strerror or error
            say(f"error: {where}: {what}; mend that and run the same command again, it goes on after the last part")
            return 1


def run(
    options: argparse.Namespace,
    job: dict[str, Any],
    files: list[WorkFile],
    slot: tuple[int, int],
    vq: VQ,
    tokenizer: TextTokenizer,
    filters: Filters,
    startup: Stopwatch,
) -> int:
    """Make the missing parts of this worker's files; finish the dataset if all workers' files are there."""
    from tokenization.encode import RejectLimit, Stopwatch, TooManyRejects
    from tokenization.encode_files import encode_files
    from tokenization.job import locked
    from tokenization.manifest import MANIFEST, finish_dataset
    from tokenization.parts import FILES, DamagedPart, mds_writer, read_file_record
    from tokenization.pipeline import Preparation

    worker, workers = slot
    mine = [work for work in files if work.number % workers == worker]
    mds_writer()  # importing it takes seconds, which belong to the start
    startup_seconds, watch = startup.elapsed(), Stopwatch()
    which = f" of {len(files)} as worker {worker} of {workers}" if workers > 1 else ""
    say(f"encoding {len(mine)} file{'s' if len(mine) != 1 else ''}{which}")
    preparation = Preparation(tokenizer, framing_of(job["vq"]), filters, options.picture_seconds, options.draft)
    try:
        pictures = encode_files(
            options.output,
            mine,
            options.samples_per_part,
            preparation,
            vq,
            options.batch_size,
            options.workers,
            watch,
            RejectLimit(options.max_rejects),
            warn=lambda line: say(f"warning: {line}"),
        )
        records = [read_file_record(options.output, work.number) for work in files]
        there = [record for record in records if record is not None]
        missing = len(records) - len(there)
        if missing:
            say(f"{options.output}: {missing:,} of {len(files):,} files are left, for other workers")
        else:
            with watch.measure("writing"), locked(options.output / FILES, alone=True, wait=True):
                if not (options.output / MANIFEST).exists():  # two workers may be the last at the same time
                    finish_dataset(options.output, job, there)
    except TooManyRejects as error:
        say(f"error: {error}; see {options.output / 'rejects.jsonl'}")
        say_rejects(options.output)
        return 1
    except DamagedPart as damage:
        say(f"error: {damage}; run the same command again, it makes what is damaged anew")
        return 1
    report(options.output, watch, startup_seconds, pictures, vq.batches)
    return 0


def open_vq(name: str, device: str | None) -> VQ:
    """The image tokenizer on the requested device, by default the GPU if there is one."""
    from pretrain.system.cpu_memory import keep_freed_memory
    from pretrain.system.threads import settle_threads

    threads = settle_threads()
    keep_freed_memory()  # hashing takes a fifth of the encoder's time on a CPU
    import torch

    from tokenization.vq import load_vq
    from tokenization.worker_plan import local_rank

    threads.use()
    try:
        if device is None and torch.cuda.is_available():
            device_or_default = f"cuda:{local_rank() % torch.cuda.device_count()}"
        else:
            device_or_default = device or "cpu"
        return load_vq(name, device=device_or_default)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        if device is None:
            raise
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def is_finished(output: Path, worker: int) -> bool:
    """Whether the dataset is complete and verifies, which is printed; a damaged one is opened for repair.

    Hashing all shards is for the first worker; the others take its word, or find the manifest gone the next time.
    """
    from tokenization.manifest import MANIFEST
    from tokenization.shards import open_dataset

    if not (output / MANIFEST).exists():
        return False
    try:
        dataset = open_dataset(output)
        if worker == 0:
            dataset.verify()
    except UserError as error:
        say(f"warning: {error}")
        (output / MANIFEST).unlink(missing_ok=True)
        return False
    say(f"{output}: finished already, {len(dataset):,} documents, all shards sound; nothing to do")
    return True


def report(output: Path, watch: Stopwatch, startup: float, pictures: int, batches: BatchCounts) -> None:
    """Print what was made, and how the wall time was spent; most of it should be encoding."""
    from tokenization.frames import in_words
    from tokenization.manifest import MANIFEST
    from tokenization.shards import read_manifest

    if (output / MANIFEST).exists():
        manifest = read_manifest(output / MANIFEST)
        counts, rejects, left_out = manifest["counts"], manifest["rejects"], manifest.get("left_out", 0)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejects.items())
        say(
            f"{output}: {counted(counts['documents'], 'document')}{f' ({left_out:,} of them repeat another file)' if left_out else ''}"
            f", {counted(counts['pictures'], 'picture')}, {counted(counts['texts'], 'text')}, "
            f"{counted(len(manifest['shards']), 'shard')}, {sum(rejects.values()):,} rejected{f' ({reasons})' if reasons else ''}"
        )
        say_rejects(output)
        if line := in_words(manifest.get("first_frames", {})):
            say(f"note: {line}")
    seconds = watch.elapsed()
    waits = ("waiting for input", "waiting for the encoder", "writing")
    shares = ", ".join(f"{what} {watch.seconds[what] / seconds:.0%}" for what in waits)
    say(
        f"encoder busy {watch.seconds['encoding'] / seconds:.0%} of {seconds:.1f} s (beside it: {shares}), "
        f"{pictures / seconds:.1f} pictures/s; starting up took {startup:.1f} s before that"
    )
    if batches.pictures:
        say(
            f"{batches.pictures:,} pictures were encoded in batches, {batches.again:,} of them again alone because a code of theirs lies "
            f"near a border (within {batches.bound:.1e}; these had moved by {batches.moved:.1e} at most)"
        )


def say_rejects(output: Path) -> None:
    """Print the first reject of each reason in full: most rejects of a reason have one cause."""
    from tokenization.manifest import REJECTS
    from tokenization.readers import Reject
    from tokenization.reject_counts import RejectCounts

    rejects = RejectCounts()
    try:
        with open(output / REJECTS, encoding="utf-8") as lines:
            for line in islice(lines, REJECTS_TO_READ):
                rejects.add(Reject(**json.loads(line)))
    except (OSError, ValueError, TypeError):
        return
    for example in rejects.examples():
        say(f"  {example}")


def say(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
