#!/usr/bin/env python
"""Benchmark of duplicate search: the final step of a dataset, from image hashes alone.

Hashes are random, and a share of them are copies with a few bits changed, in places all over the dataset.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import resource
import time

from pretrain.system.errors import run_command

CHANGED_BITS = 4
"""Of a copy, at most."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/duplicates.py --pictures 1000000 --bits 0 3",
    )
    add = parser.add_argument
    add("--pictures", type=int, default=10_000_000, help="one a document (default: %(default)s)")
    add("--copies", type=float, default=0.05, help="share of them that are copies (default: %(default)s)")
    add("--bits", type=int, nargs="+", default=[0, 3], help="as --duplicate-bits, one run each (default: 0 3)")
    add("--constant-bits", type=int, default=0, help="bits that all hashes share, as if pictures were less various")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()

    import numpy

    from tokenization.duplicates import masks, seen_before

    generator = numpy.random.default_rng(0)
    count = arguments.pictures
    hashes = generator.integers(0, 2**64, count, dtype=numpy.uint64)
    hashes &= numpy.uint64(2**64 - 2**arguments.constant_bits)
    colours = generator.integers(0, 256, (count, 3), dtype=numpy.uint8)
    copies = generator.choice(count, round(count * arguments.copies), replace=False)
    originals = generator.integers(0, count, len(copies))
    hashes[copies], colours[copies] = hashes[originals], colours[originals]
    for _ in range(CHANGED_BITS):  # a place of 0 changes nothing, so that copies have 0 to CHANGED_BITS changes
        places = generator.integers(0, 64, len(copies)).astype(numpy.uint64)
        hashes[copies] ^= (numpy.uint64(1) << places) * (places > 31)
    documents = numpy.arange(count, dtype=numpy.uint32)
    for bits in arguments.bits:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, cpu = time.monotonic(), time.process_time()
        found = seen_before(hashes, colours, documents, bits)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{count:,} pictures, {bits} bits: {len(found):,} repeat another, {len(masks(bits, count))} orders; "
            f"{seconds:.1f} s ({cpu:.1f} s of CPU), {before / 1e6:.2f} GB before, peak {peak / 1e6:.2f} GB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    run_command(main)
