"""Checkpoint saving: synchronous, or asynchronous in a thread that writes a copy."""

from __future__ import annotations

import threading
from pathlib import Path

from pretrain import checkpoint
from pretrain.config import CheckpointSection
from pretrain.coordination import Coordinator, all_processes
from pretrain.fencing import Attempt
from pretrain.sharded_files import write_boxes, write_format
from pretrain.system.errors import RunFailed
from pretrain.tensor_boxes import TensorBox, copied


class Saver:
    """Saves checkpoints of a run. A save that fails is a warning: the run goes on, and the next one is tried.

    With `checkpoint.async_save` the tensors are copied to the CPU and written by a thread, which talks over a group of its
    own; a save waits for the one before it.
    """

    def __init__(self, attempt: Attempt, options: CheckpointSection, files: dict[str, bytes], coordinator: Coordinator):
        """files: other contents of a checkpoint, by name, so that it can be converted without the rest of the run."""
        self.run, self.options, self.files, self.coordinator = attempt.run, options, files, coordinator
        self.attempt = attempt
        self.writers = all_processes() if options.async_save else coordinator
        self.thread: threading.Thread | None = None
        self.problem: str | None = None  # outcome of the last save
        self.fault: BaseException | None = None  # unexpected error of the thread, raised in the loop

    def save(self, step: int, boxes: list[TensorBox], state: dict) -> None:
        """Save a checkpoint. A collective: all ranks call it with their boxes."""
        self.wait()
        if not self.options.async_save:
            self._publish(step, boxes, state)
            self._tell()
            return
        copies = self.coordinator.all_do(lambda: copied(boxes))
        self.thread = threading.Thread(target=self._in_thread, args=(step, copies, state))
        self.thread.start()

    def wait(self) -> None:
        """Wait until no save is in progress."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
            if self.fault is not None:
                raise self.fault
            self._tell()

    def finish(self) -> None:
        """Wait for the last save. Raises RunFailed when it failed: the steps since the one before would be lost."""
        self.wait()
        if self.problem:
            raise RunFailed(
                f"{self.run}: the last checkpoint could not be written ({self.problem}): make room, and run "
                "the same command again"
            )

    def _in_thread(self, step: int, boxes: list[TensorBox], state: dict) -> None:
        try:
            self._publish(step, boxes, state)
        except BaseException as error:
            self.fault = error

    def _publish(self, step: int, boxes: list[TensorBox], state: dict) -> None:
        def write(folder: Path) -> None:
            write_boxes(folder, boxes, self.writers.group)
            if self.writers.rank == 0:
                write_format(folder)
                for name, content in self.files.items():
                    (folder / name).write_bytes(content)

        self.problem, self.step = None, step
        try:
            options = self.options
            checkpoint.publish(
                self.run, step, write, state, options.keep, options.keep_every, self.writers, self.attempt
            )
        except checkpoint.SaveFailed as error:
            self.problem = str(error)

    def _tell(self) -> None:
        if self.problem:
            self.coordinator.first_does(self.attempt.check)  # a run that lost its folder (fencing) ends anyway
            self.coordinator.warn(
                f"the checkpoint of step {self.step} could not be written ({self.problem}): the run "
                "goes on, the older checkpoints are untouched"
            )
