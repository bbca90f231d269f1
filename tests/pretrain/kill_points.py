"""Where a training process ends itself: called in the process before it trains, each arms one fatal moment.

`count` is the number of the call, in this process, at which it happens.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pretrain import checkpoint, loader, lost_workers, saver
from pretrain.engines.megatron import MegatronEngine
from pretrain.metrics import Metrics
from tests.tokenization.store import short_pauses


def die() -> None:
    """SIGKILL: no handler, no flush, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(owner, name: str, count: int, action) -> None:
    """Replace a method by one that runs `action(original, *arguments)` at its call number `count`."""
    original, calls = getattr(owner, name), 0

    def method(*arguments, **keywords):
        nonlocal calls
        calls += 1
        return action(original, *arguments, **keywords) if calls == count else original(*arguments, **keywords)

    setattr(owner, name, method)


def after_an_update(count: int) -> None:
    """The weights have moved, and nothing is written down yet."""

    def step(original, *arguments):
        original(*arguments)
        die()

    _at_call(MegatronEngine, "train_step", count, step)


def kill_workers_after_updates(*counts: int) -> None:
    """All loader workers are killed, as the kernel does when memory runs out, after each of these updates."""
    original, calls = MegatronEngine.train_step, 0

    def step(*arguments):
        nonlocal calls
        calls += 1
        figures = original(*arguments)
        for worker in multiprocessing.active_children() if calls in counts else ():
            os.kill(worker.pid, signal.SIGKILL)
        return figures

    MegatronEngine.train_step = step


def kill_workers_for_good_after_update(count: int) -> None:
    """The same, in a run that begins none again."""
    lost_workers.RESTARTS = 0
    kill_workers_after_updates(count)


def in_a_line_of_metrics(count: int) -> None:
    """Half of a line is in the file."""

    def write(_original, metrics, step, _values):
        with open(metrics._path, "a") as file:
            file.write(f'{{"step": {step}, "train/lo')
        die()

    _at_call(Metrics, "write", count, write)


def while_writing_a_checkpoint(count: int) -> None:
    """Half of the tensors are written."""

    def write(original, folder, *arguments):
        original(folder, *arguments)
        (tensors,) = folder.glob("*.distcp")
        os.truncate(tensors, tensors.stat().st_size // 2)
        die()

    _at_call(saver, "write_boxes", count, write)


def before_publishing_a_checkpoint(count: int) -> None:
    """Everything is written, nothing has its name."""
    _at_call(checkpoint, "_publish", count, lambda *_: die())


def after_publishing_a_checkpoint(count: int) -> None:
    """The new checkpoint is there, the old ones are too."""

    def publish(original, *arguments):
        original(*arguments)
        die()

    _at_call(checkpoint, "_publish", count, publish)


def while_removing_an_old_checkpoint(count: int) -> None:
    """Of the oldest checkpoint one file is gone."""
    remove, calls = shutil.rmtree, 0

    def remove_half(folder, **keywords):
        nonlocal calls
        calls += Path(folder).is_dir() and Path(folder).suffix != ".partial"
        if calls == count:
            min(Path(folder).iterdir()).unlink()
            die()
        remove(folder, **keywords)

    shutil.rmtree = remove_half


def others_of_the_job() -> list[Path]:
    """/proc folders of the processes that this one started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = stat.read_text().rpartition(")")[2].split()[3]
        except OSError:  # somebody's process that ended meanwhile
            continue
        if int(session) == os.getsid(0) and int(stat.parent.name) != os.getpid():
            found.append(stat.parent)
    return found


def deaf_to(process: Path, number: int) -> bool:
    """Whether the signal is blocked or ignored."""
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return bool((int(status["SigBlk"], 16) | int(status["SigIgn"], 16)) >> (number - 1) & 1)


def signal_while_rows_are_awaited(count: int, number: int) -> None:
    """A signal comes to all processes of the job after a step, while the loop waits for a row, and the workers are gone."""
    stepped = threading.Event()

    def step(original, *arguments):
        figures = original(*arguments)
        stepped.set()
        return figures

    def row(original, item):  # in the thread that reads ahead
        stepped.wait()
        while not {"wait", "_read_ahead"} <= set(functions_of(threading.main_thread())):
            time.sleep(0.01)
        os.killpg(0, number)
        time.sleep(1)
        return original(item)

    _at_call(MegatronEngine, "train_step", 1, step)
    _at_call(loader, "_row_or_error", count, row)


def functions_of(thread: threading.Thread) -> Iterator[str]:
    """Names of the functions that a thread is in."""
    frame = sys._current_frames()[thread.ident]
    while frame:
        yield frame.f_code.co_name
        frame = frame.f_back


def signal_in_a_step(count: int, number: int, times: int, whole_job: bool) -> None:
    """A signal comes `times` times during a step: to this process, or to all processes of its job."""

    def step(original, *arguments):
        figures = original(*arguments)
        if number in (signal.SIGINT, signal.SIGUSR1):
            assert all(deaf_to(process, number) for process in others_of_the_job())
        for _ in range(times):
            os.killpg(0, number) if whole_job else os.kill(os.getpid(), number)
        return figures

    _at_call(MegatronEngine, "train_step", count, step)


def hang_in_a_step(count: int) -> None:
    """A step that never ends."""

    def step(_original, *_arguments):
        wait_for_ever()

    _at_call(MegatronEngine, "train_step", count, step)


def wait_for_ever() -> None:
    """Its name is looked for in the stacks."""
    while True:
        time.sleep(1)


def from_a_store(moment: str, count: int) -> None:
    """Another of these moments, in a process that waits next to nothing before it asks a store again."""
    short_pauses()
    globals()[moment](count)


def as_attempt(number: str) -> None:
    """The start of a run that a scheduler has numbered."""
    os.environ["UNIX_RUN_ATTEMPT"] = str(number)


def as_rank(rank: str, ranks: str, port: str, moment: str = "", count: int = 0) -> None:
    """One of the processes of a run, as a launcher would start it; with another of these moments armed in it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if moment:
        globals()[moment](count)
