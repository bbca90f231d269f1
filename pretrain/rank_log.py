"""Log file of each rank: its step times, and the error that ended it."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path

from pretrain.records import Records
from pretrain.system.logs import LOGGER, EarlyWarnings, RankHandler


class RankLog:
    """`logs/attempt_NNNN/rank_NNNN.jsonl`: a line per step, to find stragglers and slow disks, and the rank's warnings,
    those of `early` first: they came before the attempt had a number."""

    def __init__(self, folder: Path, rank: int, records: Records, early: EarlyWarnings | None = None):
        self._path, self._records = folder / f"rank_{rank:04d}.jsonl", records
        self._handler, self._early = RankHandler(self.write), early

    def __enter__(self) -> RankLog:
        if self._early is not None:
            self._early.pass_on(self._handler)
        LOGGER.addHandler(self._handler)
        return self

    def __exit__(self, _kind, error: BaseException | None, _trace) -> None:
        LOGGER.removeHandler(self._handler)
        if error is not None:
            self.write(error="".join(traceback.format_exception(error)))

    def step(self, step: int, seconds: float, rows: float, others: float, alone: float) -> None:
        """Write a step's seconds: total, waiting for rows, waiting for other ranks' rows, and compute before the first
        collective, which is 0 where the engine does not know."""
        times = {"seconds": seconds, "waited_rows": rows, "waited_ranks": others, "alone": alone}
        self.write(step=step, **{name: round(value, 4) for name, value in times.items()})

    def write(self, **values) -> None:
        """Write a line with the time."""
        line = json.dumps({"time": round(time.time(), 3), **values}) + "\n"
        self._records.append(self._path, line.encode())


def folder_of(run: Path, attempt: int) -> Path:
    """Folder of the logs of an attempt."""
    return run / "logs" / f"attempt_{attempt:04d}"
