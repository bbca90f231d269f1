"""State of a run from its folder: progress, speed, losses, attempts, and stragglers."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint import folder_of, read_model
from pretrain.config_names import with_current_names
from pretrain.fencing import INTERRUPTED
from pretrain.system.errors import UserError
from pretrain.system.words import shown
from slurm.attempt import newest_checkpoint
from tools.runs.lines import Lines, of_events, of_metrics, of_ranks, of_restarts, of_starts

WINDOW = 50  # last lines for means
SLOWER = 1.2  # threshold of a straggler: a rank that alone makes the step so many times as long


@dataclass(frozen=True)
class RankTimes:
    """Mean seconds of a rank's last steps."""

    rank: int
    step: int
    seconds: float
    waited_rows: float
    alone: float  # compute before the first collective; 0: not known (ZeRO gathers weights all the time)

    @property
    def own(self) -> float:
        """Seconds of a step that are this rank's own."""
        return self.waited_rows + self.alone


@dataclass(frozen=True)
class RunState:
    """State of a run at one moment."""

    folder: Path
    step: int
    steps: int
    ranks: int
    global_batch_size: int
    tokens_per_step: int
    age: float  # seconds since metrics.jsonl was written to
    train: list[dict]  # the last lines with training losses
    heldout: dict | None  # the last line with held-out losses
    attempts: list[dict]  # ended ones, of restarts.jsonl
    events: list[dict]
    times: list[RankTimes]
    flops_per_row: float | None  # forward and backward, attention left out
    damaged: dict[str, int]  # file -> lines that were passed over
    interrupted: dict | None = None  # the event with which the last start ended, if it was told to stop and saved

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all ranks, the median of the last lines."""
        return self.ranks * statistics.median(
            [line["tok_per_sec_per_gpu"] for line in self.train if "tok_per_sec_per_gpu" in line] or [0.0]
        )

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds at the present speed; None without one."""
        rate = self.tokens_per_second
        return (self.steps - self.step) * self.tokens_per_step / rate if rate else None

    @property
    def flops_per_second(self) -> float | None:
        """FLOPs per second of one rank; None while no checkpoint describes the model."""
        if self.flops_per_row is None:
            return None
        rows = self.tokens_per_second / self.ranks / self.sequence_length
        return self.flops_per_row * rows

    @property
    def sequence_length(self) -> int:
        """Tokens in a row."""
        return self.tokens_per_step // self.global_batch_size

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the last lines that have it."""
        values = [line[name] for line in self.train if name in line]
        return statistics.mean(values) if values else None


def read_run(folder: Path) -> RunState:
    """Read a run folder. Raises UserError for other folders."""
    steps, rows, length = sizes_of(folder)
    metrics = folder / "metrics.jsonl"
    lines = Lines(folder)
    last = lines.last(metrics, of_metrics, count=2)
    train = lines.last(metrics, of_metrics, "train/loss", WINDOW)
    heldout = lines.last(metrics, of_metrics, "heldout/loss", 1)
    starts = lines.last(folder / "starts.jsonl", of_starts)
    attempts = lines.last(folder / "restarts.jsonl", of_restarts)
    events = lines.last(folder / "events.jsonl", of_events)
    times = rank_times(folder, lines)
    return RunState(
        folder=folder,
        step=max([line.get("step", 0) for line in last], default=0),
        steps=steps,
        ranks=starts[-1].get("processes", 1) if starts else 1,
        tokens_per_step=rows * length,
        global_batch_size=rows,
        age=time.time() - metrics.stat().st_mtime if last else 0.0,
        train=train,
        heldout=heldout[-1] if heldout else None,
        attempts=attempts,
        events=events,
        times=times,
        flops_per_row=flops_of_row(folder, train, rows, length),
        interrupted=interrupted(events, starts),
        damaged=lines.damaged,
    )


def sizes_of(folder: Path) -> tuple[int, int, int]:
    """(steps, rows of a step, tokens of a row) of a run's configuration. Raises UserError."""
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is no run folder, or its run has not begun: config.yaml is not there")
    try:
        config, _ = with_current_names(yaml.safe_load(path.read_text(encoding="utf-8")))
        sizes = {f"run.{name}": config["run"].get(name) for name in ("steps",)}
        sizes |= {f"data.{name}": config["data"].get(name) for name in ("global_batch_size", "sequence_length")}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error.__class__.__name__}): give the folder of a run") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is no run's configuration: give the folder of a run") from None
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {name} is {shown(value)}, no number above 0: give the folder of a run")
    steps, rows, length = sizes.values()
    return steps, rows, length


def interrupted(events: list[dict], starts: list[dict]) -> dict | None:
    """The last event, if it ended the last start: stopped by a signal, and saved."""
    if not events or events[-1].get("event") != INTERRUPTED:
        return None
    since = starts[-1].get("time", "") if starts else ""
    return events[-1] if events[-1].get("time", "") >= since else None


def rank_times(folder: Path, lines: Lines) -> list[RankTimes]:
    """Step times of the newest attempt's ranks, from the ends of their logs."""
    logs = sorted((folder / "logs").glob("attempt_*"))
    found = []
    for path in sorted(logs[-1].glob("rank_[0-9]*.jsonl")) if logs else []:
        last = lines.last(path, of_ranks, "seconds", WINDOW)
        if last:
            means = [
                statistics.mean(line.get(name, 0.0) for line in last) for name in ("seconds", "waited_rows", "alone")
            ]
            found.append(RankTimes(int(path.stem.removeprefix("rank_")), last[-1]["step"], *means))
    return found


def slow_ranks(times: list[RankTimes]) -> list[tuple[RankTimes, str]]:
    """Stragglers, the slowest first, and what they are slow at."""
    if len(times) < 2:
        return []
    own, rows = (statistics.median_low([getattr(each, name) for each in times]) for name in ("own", "waited_rows"))
    step = statistics.median(each.seconds for each in times)
    slow = [each for each in times if each.own - own > (SLOWER - 1) * step]
    named = [
        (each, "reading rows" if each.waited_rows - rows > 0.5 * (each.own - own) else "computing") for each in slow
    ]
    behind = [(each, "behind the others, or gone") for each in times if each.step < max(t.step for t in times) - 1]
    return sorted(named, key=lambda pair: -pair[0].own) + behind


def flops_of_row(folder: Path, train: list[dict], rows: int, length: int) -> float | None:
    """FLOPs of a row, forward and backward, without attention scores, which depend on its documents."""
    from pretrain.flops import BACKWARD, layer_weights

    newest = newest_checkpoint(folder)
    names = ("train/tokens_text", "train/tokens_image")
    counted = [sum(line[name] for name in names) for line in train if line.keys() >= set(names)]
    if not newest or not counted:
        return None
    try:
        config = read_model(folder_of(folder, newest))
    except UserError:  # what cannot be read is shown by the run itself
        return None
    targets = statistics.mean(counted) / rows
    layers = config.num_hidden_layers * layer_weights(config) * length
    return 2.0 * (1 + BACKWARD) * (layers + config.hidden_size * config.vocab_size * targets)
