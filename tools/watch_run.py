#!/usr/bin/env python
"""Watch a run: progress, speed, losses of each modality, restarts and why, and the ranks that others wait for.

It reads the run folder only, so it works on any machine that sees it, for a run that goes on and for one that is over.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import time

from pretrain.system.errors import run_command
from slurm.attempt import recomputed
from tools.runs.state import RunState, read_run, slow_ranks

SHOWN = 8  # restarts and events, the last ones


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/watch_run.py work/demo/run --once",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--once", action="store_true", help="print and leave; also without a terminal")
    parser.add_argument(
        "--every", type=float, default=5, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=0,
        metavar="N",
        help="of a device, dense, to show MFU: 989 for H100 SXM in bf16, 312 for A100",
    )
    options = parser.parse_args()
    if options.every <= 0 or options.peak_tflops < 0:
        parser.error("--every must be positive, --peak-tflops not negative")
    return options


def duration(seconds: float) -> str:
    """Hours, minutes, seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def overview(state: RunState, peak_tflops: float) -> list[tuple[str, str]]:
    """(name, value) of what a person wants to know first."""
    share = state.step / state.steps
    left = state.seconds_left
    rows = [
        ("step", f"{state.step:,} of {state.steps:,} ({share:.1%})"),
        ("tokens", f"{state.step * state.tokens_per_step:,} of {state.steps * state.tokens_per_step:,}"),
    ]
    if state.finished:
        rows.append(("state", "finished"))
    elif state.interrupted:
        step, sent = state.interrupted.get("step", state.step), state.interrupted.get("signal", "a signal")
        rows.append(
            (
                "state",
                f"interrupted ({sent}) and saved after step {step:,}, {duration(state.age)} ago; the same command goes on from there",
            )
        )
    else:
        rows.append(
            ("state", f"last word {duration(state.age)} ago, about {duration(left)} to go" if left else "no step yet")
        )
    speed = f"{state.tokens_per_second:,.0f} tokens/s on {state.ranks} ranks"
    waiting = state.mean("data_wait_pct")
    rows.append(("speed", speed + (f", {waiting:.0f} % of it waiting for data" if waiting is not None else "")))
    if state.flops_per_second is not None:
        achieved = state.flops_per_second / 1e12
        mfu = f", MFU {achieved / peak_tflops:.1%}" if peak_tflops else " (MFU: give --peak-tflops)"
        rows.append(("arithmetic", f"{achieved:.3g} TFLOP/s a rank, attention scores not counted{mfu}"))
    for name in ("loss", "loss_text", "loss_image", "grad_norm"):
        mean = state.mean(f"train/{name}")
        if mean is not None:
            held = (state.heldout or {}).get(f"heldout/{name}")
            last = next(line[f"train/{name}"] for line in reversed(state.train) if f"train/{name}" in line)
            rows.append(
                (name.replace("_", " "), f"{last:.4f}, mean {mean:.4f}" + (f", held-out {held:.4f}" if held else ""))
            )
    return rows


def restarts(state: RunState) -> list[list[str]]:
    """A row for each of the last attempts that ended."""
    counts = recomputed(state.attempts)
    return [
        [
            str(entry["attempt"]),
            time.strftime("%m-%d %H:%M", time.localtime(entry["ended"])),
            f"{entry['from_step']:,} to {entry['to_step']:,}",
            str(again),
            str(entry["ranks"]),
            entry["decision"],
            entry["reason"],
        ]
        for entry, again in list(zip(state.attempts, counts, strict=True))[-SHOWN:]
    ]


def ranks(state: RunState) -> list[list[str]]:
    """A row for each slow rank."""
    return [
        [str(each.rank), f"{each.seconds:.3f}", f"{each.waited_rows:.3f}", f"{each.alone:.3f}", what]
        for each, what in slow_ranks(state.times)[:SHOWN]
    ]


def render(state: RunState, peak_tflops: float):
    """Everything, for rich to print."""
    from rich.console import Group
    from rich.table import Table

    def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
        made = Table(*columns, title=title, title_justify="left", title_style="bold")
        for row in rows:
            made.add_row(*row)
        return made

    first = Table(box=None, show_header=False, title=str(state.folder), title_justify="left", title_style="bold")
    for name, value in overview(state, peak_tflops):
        first.add_row(name, value)
    parts: list = [first]
    if state.attempts:
        columns = ["attempt", "ended", "steps", "steps again", "ranks", "then", "why"]
        parts.append(table(f"attempts that ended ({len(state.attempts)})", columns, restarts(state)))
    if state.events:
        events = [
            [
                str(event.get("time", "")),
                str(event.get("event", "")),
                ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "attempt")),
            ]
            for event in state.events[-SHOWN:]
        ]
        parts.append(table(f"events ({len(state.events)})", ["time", "what", "more"], events))
    slow = ranks(state)
    if slow:
        columns = ["rank", "seconds a step", "waiting for rows", "computing alone", "slow at"]
        parts.append(table("slow ranks", columns, slow))
    elif state.times:
        parts.append(f"none of {len(state.times)} ranks is slower than the others")
    return Group(*parts)


def main() -> int:
    """Print once, or until the run is over or the person leaves."""
    arguments = parse_arguments()
    state = read_run(arguments.run)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.once or not sys.stdout.isatty():
        console.print(render(state, arguments.peak_tflops))
        return 0
    from rich.live import Live

    with Live(render(state, arguments.peak_tflops), console=console, screen=False) as live:
        try:
            while not state.finished:
                time.sleep(arguments.every)
                state = read_run(arguments.run)
                live.update(render(state, arguments.peak_tflops))
        except KeyboardInterrupt:
            pass  # the way to leave
    return 0


if __name__ == "__main__":
    run_command(main)
