#!/usr/bin/env python
"""Benchmark of row planning on lengths as in the paper: speed, padding, memory, and shards that rows touch.

The paper pretrains on 72B text and 65B picture tokens. Here captioned pictures have 1,024 codes and captions of
log-normal length, texts are log-normal too, and both come in the ratio of the paper. The index is written as
shard_images.py writes it, then all blocks are planned once, as training would.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import resource
import shutil
import tempfile
import time

from pretrain.system.errors import run_command

TEXT_SHARE = 72 / 137
CAPTION_MEDIAN, CAPTION_SPREAD = 60, 0.7
SHARD_DOCUMENTS = {"pictures": 8_192, "texts": 6_500}  # of a part of shard_images.py; as many as 64 MiB hold
BYTES = {"pictures": 2_700, "texts": 10_000}  # of a document in shards
WINDOW, GIB = 1000, 1 << 30  # rows
MOST_ROWS = 400_000  # whose shards are looked at: later rows are like them


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/row_planning.py --documents 1000000 --sequence-length 10240",
    )
    parser.add_argument("--documents", type=int, default=1_000_000, help="of both sources (default: %(default)s)")
    parser.add_argument(
        "--sequence-length", "--row-length", type=int, default=10_240, help="tokens (default: %(default)s)"
    )
    parser.add_argument("--row-multiple", type=int, default=8, help="tokens (default: %(default)s)")
    parser.add_argument("--text-median", type=int, default=600, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--text-spread", type=float, default=1.2, help="of its logarithm (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the index there (default: a temporary folder)")
    parser.add_argument(
        "--resume-at", type=int, default=1_000_000, help="row to find in a new plan (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="row-planning-"))
    try:
        measure(arguments, folder)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    return 0


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the index if it is missing, plan all rows of an epoch, and find a row as after a restart."""
    import numpy

    counts = write_indices(arguments, folder)
    print(f"{counts['pictures']:,} captioned pictures and {counts['texts']:,} texts")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.monotonic(), time.process_time()
    plan = plan_of(arguments, folder)
    rows = tokens = pieces = block = 0
    while plan.mixture.epoch_of(block) == 0:
        table, starts = plan._planned(block)
        rows, pieces, tokens = rows + len(starts) - 1, pieces + len(table), tokens + int(table[:, 6].sum())
        block += 1
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    documents = sum(counts.values())
    print(
        f"planned {documents:,} documents as {pieces:,} pieces in {rows:,} rows of {arguments.sequence_length:,} and "
        f"{block} blocks: {seconds:.1f} s ({cpu:.1f} s of CPU), {documents / cpu / 1e6:.2f} million a second; "
        f"padding {1 - tokens / rows / arguments.sequence_length:.3%}"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB before planning (the index is mapped, and counted)")
    touched(plan, rows)
    index = min(arguments.resume_at, rows - 1)
    plan, started, cpu = plan_of(arguments, folder), time.monotonic(), time.process_time()
    row = plan.row(index)
    print(
        f"row {index:,} of a new plan after {time.monotonic() - started:.1f} s ({time.process_time() - cpu:.1f} s of "
        f"CPU); it has {len(row)} pieces, {sum(piece.length for piece in row) / arguments.sequence_length:.1%} full"
    )
    assert numpy.isfinite(tokens)


def plan_of(arguments: argparse.Namespace, folder: Path):
    """Row plan over both sources with prompts of typical lengths."""
    import numpy

    from model.prompts import DEFAULT_TEMPLATES
    from model.vocabulary import Vocabulary
    from pretrain.rows import RowPlan, RowSize, SourceLengths
    from pretrain.tasks import TaskShares, tokenize_prompts
    from tokenization.lengths import open_lengths

    vocabulary = Vocabulary(151_936, 8192, 151_652, 151_653, 151_643)
    prompts = tokenize_prompts(lambda text: [1] * (1 + len(text) // 5), vocabulary, DEFAULT_TEMPLATES)
    sources = []
    for name in ("pictures", "texts"):
        starts = numpy.load(folder / name / "starts.npy")
        sources.append(SourceLengths(name, 1.0, open_lengths(folder / name, starts)))
    size = RowSize(arguments.sequence_length, arguments.row_multiple)
    return RowPlan(sources, prompts, TaskShares(0.5, 0.1, False), size, seed=0)


def write_indices(arguments: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Write the length indices of both sources, a million documents at a time."""
    import numpy

    generator = numpy.random.default_rng(0)

    def lognormal(median: float, spread: float, count: int):
        drawn = numpy.exp(generator.normal(numpy.log(median), spread, count))
        return numpy.clip(drawn, 1, 1_000_000).astype(numpy.int32)

    sample = lognormal(arguments.text_median, arguments.text_spread, 1_000_000).mean()
    caption = lognormal(CAPTION_MEDIAN, CAPTION_SPREAD, 1_000_000).mean()
    # text tokens are those of texts and of captions: TEXT_SHARE of all
    texts_a_picture = (1024 * TEXT_SHARE / (1 - TEXT_SHARE) - caption) / sample
    pictures = round(arguments.documents / (1 + texts_a_picture))
    counts = {"pictures": pictures, "texts": arguments.documents - pictures}
    for kind, (name, count) in enumerate(counts.items()):
        lengths = folder / name / "lengths"
        if lengths.exists():
            continue
        lengths.mkdir(parents=True)
        each = 2 if name == "pictures" else 1
        new = numpy.lib.format.open_memmap
        arrays = {
            "offsets": new(lengths / "offsets.npy", "w+", numpy.int64, (count + 1,)),
            "lengths": new(lengths / "lengths.npy", "w+", numpy.int32, (count * each,)),
            "layout": new(lengths / "layout.npy", "w+", numpy.uint8, (count * each,)),
            "kinds": new(lengths / "kinds.npy", "w+", numpy.uint8, (count,)),
        }
        for low in range(0, count, 1_000_000):
            high = min(low + 1_000_000, count)
            arrays["offsets"][low : high + 1] = numpy.arange(low, high + 1) * each
            if each == 2:
                arrays["lengths"][2 * low : 2 * high : 2] = 1024
                arrays["lengths"][2 * low + 1 : 2 * high : 2] = lognormal(CAPTION_MEDIAN, CAPTION_SPREAD, high - low)
                arrays["layout"][2 * low : 2 * high : 2] = 1
            else:
                arrays["lengths"][low:high] = lognormal(arguments.text_median, arguments.text_spread, high - low)
            arrays["kinds"][low:high] = kind
        numpy.save(
            folder / name / "starts.npy",
            numpy.minimum(numpy.arange(0, count + SHARD_DOCUMENTS[name], SHARD_DOCUMENTS[name]), count),
        )
    return counts


def touched(plan, rows: int) -> None:
    """Print how much a reader of rows 0 to `rows` (MOST_ROWS at most), in order, downloads, by cache size."""
    import numpy

    rows = min(rows, MOST_ROWS)
    starts = [source.index.shard_starts for source in plan.sources]
    first = numpy.cumsum([0, *(len(of_source) - 1 for of_source in starts)])
    sizes = numpy.concatenate(
        [numpy.diff(of_source) * of for of_source, of in zip(starts, BYTES.values(), strict=True)]
    )
    shards, at, block = [], 0, 0  # those of each row
    while at < rows:
        table, begins = plan._planned(block)
        found = numpy.empty(len(table), numpy.int64)
        for number, of_source in enumerate(starts):
            chosen = table[:, 0] == number
            found[chosen] = first[number] + numpy.searchsorted(of_source, table[chosen, 1], side="right") - 1
        shards += [numpy.unique(part) for part in numpy.split(found, begins[1:-1])]
        at, block = at + len(begins) - 1, block + 1
    windows = [numpy.unique(numpy.concatenate(shards[low : low + WINDOW])) for low in range(0, rows, WINDOW)]
    counts, room = [len(window) for window in windows], [sizes[window].sum() / GIB for window in windows]
    seen = numpy.unique(numpy.concatenate(shards))
    different = len(seen)
    print(
        f"a row touches {numpy.mean([len(of_row) for of_row in shards]):.1f} shards; {WINDOW:,} rows on end touch "
        f"{numpy.median(counts):.0f} ({min(counts)} to {max(counts)}), which is {numpy.median(room):.2f} GiB "
        f"({min(room):.2f} to {max(room):.2f}); {at:,} rows touch {different:,}, {sizes[seen].sum() / GIB:.1f} GiB"
    )
    for part in (0.8, 1.0, 1.25, 1.5, 2.0):
        limit = part * float(numpy.median(room))
        times = fetched(shards, sizes.tolist(), limit * GIB) / different
        print(
            f"with room for {limit:.2f} GiB, {part} times what {WINDOW:,} rows touch, a shard is fetched {times:.2f} times"
        )


def fetched(shards: list, sizes: list[int], room: float) -> int:
    """Downloads with an LRU cache of so many bytes."""
    cache: dict[int, None] = {}  # the next to go first
    count, used = 0, 0
    for of_row in shards:
        for shard in of_row.tolist():
            if shard in cache:
                del cache[shard]
            else:
                count, used = count + 1, used + sizes[shard]
            cache[shard] = None
            while used > room and len(cache) > 1:
                used -= sizes[oldest := next(iter(cache))]
                del cache[oldest]
    return count


if __name__ == "__main__":
    run_command(main)
