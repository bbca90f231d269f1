#!/usr/bin/env python
"""Submission of a batch script: show its plan, check that it can run, and call sbatch. --dry-run does not submit.

Settings of slurm/site.sh are applied, the partition and account among them. Mistakes are reported before the queue: the
batch and the nodes, data and tokenizers, the checkpoint to resume from, write permission. As with sbatch, options come
before the script.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import argparse
import os
import re
import shlex
import subprocess

from pretrain.system.errors import RunFailed, UserError, run_command
from slurm import plan

WITH_SITE = (
    'set -a; . "$UNIX_ROOT/slurm/site.sh"; exec "$@"'  # bash: the rest of the command line, with the site's settings
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python slurm/submit.py --nodes 4 --dry-run slurm/pretrain_3b.sbatch optim.lr=1e-4",
    )
    parser.add_argument("script", type=Path, help="batch script that trains, such as slurm/pretrain_3b.sbatch")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the configuration's"
    )
    parser.add_argument("--config", help="another configuration than the script's (sets UNIX_CONFIG)")
    parser.add_argument("--nodes", help="N, or from-to: the job then starts with what is there (default: the script's)")
    parser.add_argument("--gpus-per-node", type=int, help="default: the script's")
    parser.add_argument("--time", help="limit, as sbatch has it (default: the script's)")
    parser.add_argument("--dry-run", action="store_true", help="show and check, do not submit")
    parser.add_argument(
        "--no-data", action="store_true", help="check neither data nor checkpoints, if they are not seen from here"
    )
    return parser.parse_args()


def options_of(script: Path) -> tuple[dict[str, str], str, list[str]]:
    """#SBATCH options of a batch script, its training configuration, and the overrides of it.

    Raises UserError for a script that does not train.
    """
    try:
        text = script.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{script}: cannot be read ({error.strerror})") from None
    trains = re.search(r'^train (\S+) (.*)"\$@"$', text, re.MULTILINE)
    if not trains:
        raise UserError(f"{script}: does not train: submit it with sbatch")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    return options, trains.group(1), shlex.split(trains.group(2))


def last_number(nodes: str) -> int:
    """Largest node count of sbatch's --nodes, as in 4 or 2-4. Raises UserError."""
    found = re.fullmatch(r"(?:\d+-)?(\d+)", nodes)
    if not found or int(found.group(1)) < 1:
        raise UserError(f"--nodes {nodes}: write a number, or from-to")
    return int(found.group(1))


def sbatch_command(arguments: argparse.Namespace) -> list[str]:
    """The sbatch command line."""
    command = ["sbatch"]
    for name in ("nodes", "gpus_per_node", "time"):
        value = getattr(arguments, name)
        if value:
            command.append(f"--{name.replace('_', '-')}={value}")
    return [*command, str(arguments.script), *arguments.overrides]


def main() -> int:
    """Plan, check, submit."""
    arguments = parse_arguments()
    options, config_path, own = options_of(arguments.script)
    from pretrain.config import load_config

    config_path = arguments.config or os.environ.get("UNIX_CONFIG") or str(ROOT / config_path)
    nodes = last_number(arguments.nodes or options.get("nodes", "1"))
    per_node = arguments.gpus_per_node or int(
        os.environ.get("UNIX_RANKS_PER_NODE") or options.get("gpus-per-node", "1")
    )
    environment = {**os.environ, "UNIX_ROOT": str(ROOT), "UNIX_CONFIG": str(Path(config_path).absolute())}
    config = load_config(config_path, [*own, *arguments.overrides])
    work = subprocess.run(
        ["bash", "-c", WITH_SITE, "bash", "printenv", "UNIX_WORK"], env=environment, text=True, capture_output=True
    )
    if work.returncode:
        raise UserError(f"slurm/site.sh cannot be read: {' '.join(work.stderr.split())}")
    here = Path.cwd()
    os.chdir(work.stdout.strip())  # relative paths of the configuration are relative to this folder
    _, data_ranks = plan.fitting_nodes(config, nodes, per_node, fit=False)
    lines = plan.describe(config, nodes, per_node, data_ranks)
    start = "not checked" if arguments.no_data else plan.check_start(config)
    os.chdir(here)
    command = sbatch_command(arguments)
    print("\n".join([*lines, f"start            {start}", f"command          {shlex.join(command)}"]), flush=True)
    if arguments.dry_run:
        return 0
    try:
        done = subprocess.run(["bash", "-c", WITH_SITE, "bash", *command], env=environment)
    except OSError as error:
        raise UserError(f"bash cannot be started ({error.strerror})") from None
    if done.returncode:
        raise RunFailed("sbatch did not take the job, see above")
    return 0


if __name__ == "__main__":
    run_command(main)
