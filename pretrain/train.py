#!/usr/bin/env python
"""Train a model from code shards, in one process or in many that torchrun or srun started.

The run folder has everything of a run: resolved configuration, code version, metrics, samples, checkpoints. The same command
resumes an interrupted run from its newest checkpoint that verifies, with the same rows and, on the same processors with the
same threads, bit-identical losses.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os

from model.kernels import check_installed, check_loads
from pretrain.config import load_config
from pretrain.inputs import check_inputs
from pretrain.launch import launched_processes
from pretrain.process_ranks import check_world
from pretrain.system.errors import ReportedByOtherRank, RunFailed, TryAgain, UserError, run_command
from pretrain.system.threads import settle_threads


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python pretrain/train.py --config pretrain/configs/demo.yaml optim.lr=1e-3 run.steps=200",
    )
    parser.add_argument("--config", required=True, help="YAML file; pretrain/configs has complete ones")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser.parse_args()


def main() -> int:
    """Read and check the configuration, then train."""
    arguments = parse_arguments()
    processes = launched_processes()  # first: it decides which process reports errors
    from pretrain import runtime

    try:
        config = load_config(arguments.config, arguments.overrides)
        check_world(config, processes)
        check_installed(config.run.kernels)
        if processes == 1:
            check_inputs(config.data, config.run.init_from)  # before the seconds that it takes to import torch
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            raise ReportedByOtherRank(2) from None  # every process finds the same: rank 0 reports it
        raise
    threads = settle_threads(config.run.threads)
    runtime.settle_devices(config.parallel.tensor)
    try:
        check_loads(config.run.kernels)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            raise ReportedByOtherRank(2) from None
        raise
    runtime.install()
    threads.use()
    if not config.run.threads and os.environ.get("RANK", "0") == "0":
        print(threads, flush=True)
    from pretrain.coordination import lost_processes, out_of_memory
    from pretrain.start import train

    rank = os.environ.get("RANK", "0")
    try:
        code = train(config, sys.argv)
    except (RuntimeError, MemoryError) as error:
        first = (str(error).splitlines() or ["MemoryError"])[0]
        if out_of_memory(error):
            raise RunFailed(
                f"rank {rank} has no memory left ({first}): take a shorter data.sequence_length, parallel.recompute or more "
                "processes; tools/plan_parallel.py says what fits"
            ) from error
        if not lost_processes(error):
            raise
        raise TryAgain(f"rank {rank} has lost the other processes ({first}): start the run again") from None
    runtime.leave_distributed()
    return code


if __name__ == "__main__":
    run_command(main)
