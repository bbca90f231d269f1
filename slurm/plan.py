#!/usr/bin/env python
"""Plan of a run on a number of nodes: layout, batch and memory, and whether it can start. Needs no GPU.

Every possible mistake of a set-up is checked here, and is one line with exit code 2: the configuration, a batch that does
not divide, data and tokenizers, the checkpoint to resume from, write permission.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os

from pretrain.system.errors import TryAgain, UserError, run_command
from pretrain.system.words import counted


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python slurm/plan.py --config pretrain/configs/pretrain_3b.yaml --nodes 8 --ranks-per-node 8",
    )
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--nodes", type=int, required=True, help="nodes of the allocation")
    parser.add_argument("--ranks-per-node", type=int, required=True, help="processes on a node: its GPUs")
    parser.add_argument(
        "--no-data", action="store_true", help="look at the configuration only, not at data and checkpoints"
    )
    parser.add_argument(
        "--for-script",
        action="store_true",
        help="print the nodes to use and the run folder; a run "
        "that has begun may then go on with fewer nodes than there are, where the batch divides",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    options = parser.parse_args()
    for name in ("nodes", "ranks_per_node"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def fitting_nodes(config, nodes: int, per_node: int, fit: bool) -> tuple[int, int]:
    """(nodes to use, data-parallel ranks). Raises UserError when the run cannot use all nodes, or, with `fit`, any
    number of them."""
    from pretrain.process_ranks import check_world

    first: UserError | None = None
    for count in range(nodes, 0, -1):
        try:
            return count, check_world(config, count * per_node)
        except UserError as error:
            first = first or error
            if not fit:
                break
    raise UserError(f"{nodes} nodes x {per_node} processes: {first}")


def check_start(config) -> str:
    """What the run would start from, in words. Raises UserError if it could not start."""
    from pretrain import checkpoint
    from pretrain.data import Data
    from pretrain.process_ranks import ProcessRanks
    from pretrain.run_folder import check_model

    run = Path(config.run.folder)
    check_writable(run)
    data = Data(config, ProcessRanks())
    found = checkpoint.all_checkpoints(run)
    if not found:
        if config.run.init_from and not Path(config.run.init_from).is_dir():
            raise UserError(
                f"run.init_from {config.run.init_from} is no folder: make it with tools/convert_from_hf.py, or "
                "leave it empty to start from random weights"
            )
        return (
            f"starts from the weights of {config.run.init_from}"
            if config.run.init_from
            else "starts from random weights"
        )
    if config.run.resume == "never":
        raise UserError(f"{run} has checkpoints and run.resume is never: choose another run.folder, or set it to auto")
    newest = found[-1]  # the run verifies it, and skips a damaged one
    try:
        state = checkpoint.read_state(newest)
    except (OSError, ValueError):
        return f"goes on from {newest.name}, or an earlier one: this one is damaged"
    if state["plan"] != data.train.plan.fingerprint:
        raise UserError(
            f"{newest}: was trained on other rows (data, mixture, prompts, seed or row length changed): restore "
            "them, or choose another run.folder"
        )
    check_model(newest, data.model_config, "resume with the configuration that made it, or choose another run.folder")
    return f"goes on from {newest.name}"


def check_writable(run: Path) -> None:
    """Create the run folder. Raises UserError unless this user can write to it."""
    probe = run / f".write_{os.getpid()}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error.strerror}): set run.folder to a folder of yours") from None


def describe(config, nodes: int, per_node: int, data_ranks: int) -> list[str]:
    """The plan, line by line."""
    run, data, parallel = config.run, config.data, config.parallel
    tokens = data.global_batch_size * data.sequence_length
    return [
        f"nodes            {nodes} x {per_node} processes = {nodes * per_node}",
        f"engine           {run.engine}, {run.precision}",
        f"layout           tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {data_ranks}",
        f"batch            {counted(data.global_batch_size, 'row')} a step, {data.global_batch_size // data_ranks} on each data-parallel rank, "
        f"of {data.sequence_length:,} tokens",
        f"tokens           {tokens:,} a step, {tokens * run.steps:,} in {run.steps:,} steps",
        f"memory           {memory_of(config, data_ranks)}",
        f"checkpoints      every {config.checkpoint.every:,} steps in {run.folder}",
    ]


def memory_of(config, data_ranks: int) -> str:
    """Expected memory of a device, in words."""
    from pretrain.planning.expected import expected_memory
    from pretrain.planning.shape import row_shape, sizes_of_data
    from pretrain.setup import sized_config

    model = sized_config(config.model, *sizes_of_data(config, 0, 0), special=(0, 1, 2))
    return str(expected_memory(config, model, row_shape(config.data.sequence_length), data_ranks))


def main() -> int:
    """Read and check the configuration, and print the plan."""
    arguments = parse_arguments()
    from pretrain.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    begun = (Path(config.run.folder) / "attempt.json").exists()
    fit = arguments.for_script and begun
    nodes, data_ranks = fitting_nodes(config, arguments.nodes, arguments.ranks_per_node, fit)
    start = ""
    try:
        start = "" if arguments.no_data else check_start(config)
    except TryAgain:
        if not fit:
            raise
        # a started run has read its data before: its ranks retry the store, as often as attempts may fail
    if nodes < arguments.nodes:
        print(
            f"warning: {arguments.nodes - nodes} of {arguments.nodes} nodes stay idle: data.global_batch_size "
            f"{config.data.global_batch_size} does not divide over them",
            file=sys.stderr,
        )
    if arguments.for_script:
        print(f"{nodes} {Path(config.run.folder).absolute()}")
        return 0
    print("\n".join(describe(config, nodes, arguments.ranks_per_node, data_ranks)))
    if start:
        print(f"start            {start}")
    return 0


if __name__ == "__main__":
    run_command(main)
