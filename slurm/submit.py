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
    '. "$UNIX_ROOT/slurm/settings.sh" && exec "$@"'  # bash: the rest of the command line, with the site's settings
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
    parser.add_argument("--gpus-per-node", help="default: the script's")
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
    except UnicodeDecodeError:
        raise UserError(f"{script}: is no text: give a batch script, such as slurm/pretrain_3b.sbatch") from None
    trains = re.search(r'^train (\S+) (.*)"\$@"$', text, re.MULTILINE)
    if not trains:
        raise UserError(f"{script}: does not train: submit it with sbatch")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    return options, trains.group(1), shlex.split(trains.group(2))


def last_number(nodes: str) -> int:
    """Largest node count of sbatch's --nodes, as in 4 or 2-4. Raises UserError."""
    found = re.fullmatch(r"(?:([0-9]{1,6})-)?([0-9]{1,6})", nodes)
    if not found or not 1 <= int(found.group(1) or found.group(2)) <= int(found.group(2)):
        raise UserError(f"--nodes {nodes}: write a number, or from-to")
    return int(found.group(2))


def gpus_of(words: str) -> int:
    """GPUs of sbatch's --gpus-per-node, as in 8 or h100:8. Raises UserError."""
    found = re.fullmatch(r"(?:[^:,]+:)?([1-9][0-9]{0,3})", words)
    if not found:
        raise UserError(f"--gpus-per-node {words}: write a whole number, 1 or more, or TYPE:NUMBER")
    return int(found.group(1))


def seconds_of(limit: str) -> int | None:
    """Seconds of sbatch's --time, None for no limit. Raises UserError."""
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        raise UserError(f"--time {limit}: write minutes, hours:minutes:seconds, or days-hours")
    days, *rest = found.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is None and rest[2] is None:  # minutes[:seconds]
        return first * 60 + second
    return int(days or 0) * 86400 + first * 3600 + second * 60 + third


def check_time(limit: str, signal: str) -> None:
    """Raises UserError for a time limit that is over when Slurm signals its end: each start of the job would save and
    leave at once."""
    seconds, ahead = seconds_of(limit), re.search(r"@(\d+)$", signal)
    if seconds and ahead and seconds <= int(ahead.group(1)) + 60:  # Slurm's timing is by the minute
        raise UserError(
            f"--time {limit}: {seconds} s, and the job is told to save {ahead.group(1)} s before (--signal={signal}): "
            "raise --time, or lower the number in the script's --signal"
        )


def sbatch_command(arguments: argparse.Namespace) -> list[str]:
    """The sbatch command line."""
    command = ["sbatch"]
    for name in ("nodes", "gpus_per_node", "time"):
        value = getattr(arguments, name)
        if value is not None:
            command.append(f"--{name.replace('_', '-')}={value}")
    return [*command, str(arguments.script), *arguments.overrides]


def with_site(*command: str, config: Path, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command with the settings of slurm/site.sh. Raises UserError for wrong ones."""
    environment = {**os.environ, "UNIX_ROOT": str(ROOT), "UNIX_CONFIG": str(config)}
    try:
        return subprocess.run(
            ["bash", "-c", WITH_SITE, "bash", *command], env=environment, text=True, capture_output=capture
        )
    except OSError as error:
        raise UserError(f"bash cannot be started ({error.strerror})") from None


def settings(config: Path) -> tuple[str, str]:
    """UNIX_WORK and UNIX_RANKS_PER_NODE as the job sees them. Raises UserError for wrong settings."""
    done = with_site("printenv", "UNIX_WORK", "UNIX_RANKS_PER_NODE", config=config, capture=True)
    if done.returncode:
        raise UserError(done.stderr.strip().rpartition("error: ")[2] or "slurm/site.sh cannot be read")
    work, ranks = done.stdout.split("\n")[:2]
    return work, ranks


def answers() -> bool:
    """Whether a Slurm controller answers on this machine."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def ask_slurm(command: list[str], config: Path) -> str:
    """What Slurm says about a job that is not submitted: its partition, nodes and limits. Raises UserError if it refuses."""
    if not answers():
        return "not asked, because no controller of it answers here"
    done = with_site(command[0], "--test-only", *command[1:], config=config, capture=True)
    said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
    if done.returncode:
        raise UserError(f"Slurm would not take the job: {said}: change the partition or the options of sbatch")
    return said


def main() -> int:
    """Plan, check, submit."""
    arguments = parse_arguments()
    options, own_config, own = options_of(arguments.script)
    from pretrain.config import load_config

    for word in arguments.overrides:
        if word.startswith("-"):
            raise UserError(f"{word} after the script: options go before the script, overrides are section.key=value")
    config_path = Path(arguments.config or os.environ.get("UNIX_CONFIG") or ROOT / own_config).absolute()
    work, ranks = settings(config_path)
    nodes = last_number(arguments.nodes or options.get("nodes", "1"))
    given = arguments.gpus_per_node or os.environ.get("SBATCH_GPUS_PER_NODE") or options.get("gpus-per-node", "1")
    per_node = int(ranks or gpus_of(given))  # as slurm/job.sh counts them
    time = arguments.time or os.environ.get("SBATCH_TIMELIMIT") or options.get("time", "UNLIMITED")
    check_time(time, os.environ.get("SBATCH_SIGNAL") or options.get("signal", ""))
    config = load_config(config_path, [*own, *arguments.overrides])
    here = Path.cwd()
    os.chdir(work)  # relative paths of the configuration are relative to this folder
    _, data_ranks = plan.fitting_nodes(config, nodes, per_node, fit=False)
    lines = plan.describe(config, nodes, per_node, data_ranks)
    start = "not checked" if arguments.no_data else plan.check_start(config)
    os.chdir(here)
    command = sbatch_command(arguments)
    print("\n".join([*lines, f"start            {start}", f"command          {shlex.join(command)}"]), flush=True)
    if arguments.dry_run:
        print(f"Slurm            {ask_slurm(command, config_path)}")
        return 0
    if with_site(*command, config=config_path).returncode:
        raise RunFailed("sbatch did not take the job, see above")
    return 0


if __name__ == "__main__":
    run_command(main)
