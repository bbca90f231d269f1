#!/usr/bin/env python
"""Preflight check of a job's nodes before the ranks start: unfit nodes are named. slurm/job.sh runs it.

    preflight.py node FOLDER ...     on every node: what it has, what it sees, what a killed run left behind is removed
    preflight.py link FOLDER ...     on every rank: clocks, an all-reduce, the bandwidth between neighbours
    preflight.py judge FOLDER ...    once: the names of bad nodes on standard output, why on standard error

Every node leaves a JSON file in FOLDER, which stays with the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from importlib import metadata

from pretrain.system.errors import TryAgain, UserError, run_command
from slurm.shared_memory import remove_leftovers
from tokenization.remote import inside, read_small

GIB = 2**30
MEGABYTES = {"gpu": 256, "cpu": 4}  # bytes of an all-reduce, and of an exchange between two nodes
TIMEOUT = 120  # timeout in seconds: a slower node counts as not responding


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python slurm/preflight.py node work/check --config pretrain/configs/demo.yaml",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    node = actions.add_parser("node", help="on every node")
    node.add_argument("folder", type=Path)
    node.add_argument("--config", required=True, help="YAML file of the run: its data are looked at")
    node.add_argument("overrides", nargs="*", metavar="section.key=value")
    link = actions.add_parser("link", help="on every rank")
    link.add_argument("folder", type=Path)
    link.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    judge = actions.add_parser("judge", help="once, afterwards")
    judge.add_argument("folder", type=Path)
    judge.add_argument("--nodes", required=True, help="names, comma-separated")
    judge.add_argument("--ranks-per-node", type=int, required=True)
    judge.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    judge.add_argument("--min-disk", type=float, default=20, help="GiB (default: %(default)s)")
    judge.add_argument("--min-bandwidth", type=float, default=0, help="GB/s between two nodes (default: not judged)")
    judge.add_argument("--max-clock", type=float, default=5, help="seconds (default: %(default)s)")
    judge.add_argument("--links", action="store_true", help="judge what `link` found too")
    return parser.parse_args()


def this_node() -> str:
    """Slurm's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


def look(config) -> dict:
    """Check this node: GPUs, free disk and shared memory, hashes of code and data, software versions."""
    run = Path(config.run.folder)
    return {
        "node": this_node(),
        "time": time.time(),
        "gpus": count_gpus(),
        "disk_gib": round(shutil.disk_usage(run).free / GIB, 1),
        "shared_memory_gib": round(shutil.disk_usage("/dev/shm").free / GIB, 1),
        "code": fingerprint(
            sorted(path for name in ("model", "pretrain", "tokenization") for path in (ROOT / name).rglob("*.py"))
        ),
        "data": fingerprint([inside(source.path, "manifest.json") for source in config.data.sources]),
        "software": f"Python {sys.version.split()[0]}, torch {metadata.version('torch')}",
        "removed": remove_leftovers(),
    }


def count_gpus() -> int:
    """Number of GPUs that respond."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def fingerprint(paths: list[Path | str]) -> str:
    """Hash of files, local or at URLs, as this node sees them; unreadable ones are listed by name."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(read_small(path))
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        except TryAgain:  # the same words on every node that it does not answer
            return f"{path} does not answer"
        except UserError as error:
            return str(error)
    return digest.hexdigest()[:16]


def measure(device: str) -> dict:
    """Measure on every rank: clock offsets, an all-reduce, and transfers between neighbouring nodes -> this node's
    record."""
    import datetime

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo warns of every peer without a host name
    import torch
    import torch.distributed as dist

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    each = int(os.environ["LOCAL_WORLD_SIZE"])
    place = torch.device("cuda", local) if device == "gpu" else torch.device("cpu")
    dist.init_process_group("nccl" if device == "gpu" else "gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    numbers = torch.ones(MEGABYTES[device] * 10**6 // 4, device=place)
    gigabytes = numbers.numel() * 4 / 1e9
    dist.all_reduce(numbers)  # connections are made here
    clocks: list = [None] * size
    dist.barrier()
    dist.all_gather_object(clocks, (this_node(), time.time()))
    found = {"node": this_node(), "clock_offset": clocks[rank][1] - clocks[0][1]}
    begin = clock(device)
    dist.all_reduce(numbers)
    found["all_reduce_gb_per_s"] = round(gigabytes * 2 * (size - 1) / size / (clock(device) - begin), 3)
    found["links"] = {}
    count = size // each
    for pairs in rounds(count):
        mine = next((pair for pair in pairs if rank // each in pair), None)
        if mine and local == 0:
            peer = sum(mine) - rank // each
            begin = clock(device)
            received = torch.empty_like(numbers)
            exchange = [dist.P2POp(dist.isend, numbers, peer * each), dist.P2POp(dist.irecv, received, peer * each)]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            found["links"][clocks[peer * each][0]] = round(2 * gigabytes / (clock(device) - begin), 3)
        dist.barrier()
    dist.destroy_process_group()
    return found


def clock(device: str) -> float:
    """Elapsed seconds, after queued GPU work has finished."""
    if device == "gpu":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours in a ring of nodes, in rounds with each node at most once."""
    even = [(first, first + 1) for first in range(0, count - 1, 2)]
    odd = [(first, first + 1) for first in range(1, count - 1, 2)]
    return [pairs for pairs in (even, odd, [(count - 1, 0)] if count > 2 else []) if pairs]


def judge_nodes(records: dict[str, dict], nodes: list[str], limits: argparse.Namespace) -> dict[str, str]:
    """Unfit nodes by their `node` records -> {bad node: why}."""
    bad = {}
    answered = [records[name] for name in nodes if name in records]  # of two equally frequent values, the first
    usual = {
        key: Counter(found[key] for found in answered).most_common(1)[0][0]
        for key in ("code", "data", "software")
        if answered
    }
    for name in nodes:
        found = records.get(name)
        if found is None:
            bad[name] = "gave no answer"
        elif limits.device == "gpu" and found["gpus"] < limits.ranks_per_node:
            bad[name] = f"has {found['gpus']} GPUs that answer, {limits.ranks_per_node} are needed"
        elif found["disk_gib"] < limits.min_disk:
            bad[name] = f"has {found['disk_gib']} GiB free where the run lies, {limits.min_disk:g} are asked for"
        else:
            other = [key for key, value in usual.items() if found[key] != value]
            if other:
                key = other[0]
                bad[name] = f"sees other {key} than most: {found[key]}, they {usual[key]}"
    return bad


def judge_links(links: dict[str, dict], nodes: list[str], limits: argparse.Namespace) -> dict[str, str]:
    """Unfit nodes by their `link` records -> {bad node: why}. Of two nodes with a slow link either may be the cause."""
    if not links:
        return {}  # no rank finished: only the nodes' own records exist
    bad = {name: "did not take part in the all-reduce" for name in nodes if name not in links}
    offsets = sorted(found["clock_offset"] for found in links.values())
    middle = offsets[len(offsets) // 2] if len(offsets) > 2 else 0.0  # of two nodes, the first is taken as reference
    for name, found in links.items():
        if abs(found["clock_offset"] - middle) > limits.max_clock:
            bad[name] = f"its clock is {found['clock_offset'] - middle:+.1f} s from that of the others"
        speeds = found["links"].values()
        if len(nodes) > 2 and speeds and max(speeds) < limits.min_bandwidth:
            bad[name] = f"exchanges {max(speeds):g} GB/s with its neighbours, {limits.min_bandwidth:g} are asked for"
    return bad


def read(folder: Path, prefix: str) -> dict[str, dict]:
    """Records of all nodes, by name. Raises UserError for one that is damaged."""
    records = {}
    for path in folder.glob(f"{prefix}_*.json"):
        try:
            found = json.loads(path.read_text("utf-8"))
            records[found["node"]] = found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is no record of a node ({error!r}): look at the disk, and remove it") from None
    return records


def write(folder: Path, prefix: str, found: dict) -> None:
    """Write a record atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}_{found['node']}.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def judge(arguments: argparse.Namespace) -> dict[str, str]:
    """Unfit nodes by all records -> {bad node: why}; if that is all of them, none can be blamed."""
    nodes = arguments.nodes.split(",")
    bad = judge_nodes(read(arguments.folder, "node"), nodes, arguments)
    if arguments.links:
        bad |= judge_links(read(arguments.folder, "link"), nodes, arguments)
    return bad


def main() -> int:
    """Run a subcommand."""
    arguments = parse_arguments()
    if arguments.action == "node":
        from pretrain.config import load_config

        write(arguments.folder, "node", look(load_config(arguments.config, arguments.overrides)))
    elif arguments.action == "link":
        found = measure(arguments.device)
        if os.environ["LOCAL_RANK"] == "0":
            write(arguments.folder, "link", found)
    else:
        bad = judge(arguments)
        for name, why in sorted(bad.items()):
            print(f"warning: node {name} is left out: it {why}", file=sys.stderr)
        print(" ".join(sorted(bad)))
    return 0


if __name__ == "__main__":
    run_command(main)
