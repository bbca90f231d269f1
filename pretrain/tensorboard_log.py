"""TensorBoard event files written record by record: each record is flushed to disk, without a thread.

The format is that of tensorboard's own writer: a header of version and purged steps, then an event for every number.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

from pretrain.records import Records
from pretrain.system.light_imports import tensorboard_records


class TensorboardLog:
    """TensorBoard events of one start of a run, in a file of its own."""

    def __init__(self, folder: Path, first_step: int, records: Records):
        """first_step: TensorBoard hides events of earlier starts from this step on."""
        self.event, session, self.summary, self.writer = tensorboard_records()
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns() % 10**9}"
        self.path, self.records = folder / name, records
        start = session(status=session.START)
        self._append(
            self.event(wall_time=now, step=first_step, file_version="brain.Event:2"),
            self.event(wall_time=now, step=first_step, session_log=start),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        now, summary = time.time(), self.summary
        numbers = [summary(value=[summary.Value(tag=name, simple_value=value)]) for name, value in values.items()]
        self._append(*(self.event(wall_time=now, step=step, summary=number) for number in numbers))

    def _append(self, *events) -> None:
        data = io.BytesIO()
        writer = self.writer(data)
        for event in events:
            writer.write(event.SerializeToString())
        self.records.append(self.path, data.getvalue())
