"""Screen of tools/watch_run.py: progress, restarts and ranks of a run, in lines."""

from __future__ import annotations

import time

from pretrain.system.words import counted
from slurm.attempt import recomputed
from tools.runs.lines import left_out
from tools.runs.state import RunState, slow_ranks

SHOWN = 8  # restarts and events, the last ones


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes, seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def overview(state: RunState, peak_tflops: float) -> list[tuple[str, str]]:
    """(name, value) of the main numbers."""
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
    speed = f"{state.tokens_per_second:,.0f} tokens/s on {counted(state.ranks, 'rank')}"
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
    for name, count in state.damaged.items():
        rows.append(("damaged", left_out(count, name)))
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
    """The whole screen, for rich to print."""
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
    elif len(state.times) > 1:
        parts.append(f"none of {len(state.times)} ranks is slower than the others")
    return Group(*parts)
