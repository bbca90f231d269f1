"""Four processes that stay for the whole test session and take jobs: imports are paid once, groups are made anew.

A job is a function of this repository that is called on the first n ranks with the same arguments, as torchrun would
start it, but for the environment: its process group is there already. What it returns on each rank comes back.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

RANKS = 4


def serve(rank: int, pipe: Connection, port: int) -> None:
    """What each process does: a job after the other, until the other end of the pipe is closed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from model.torchvision_compat import ensure_torchvision
    from pretrain import runtime

    torch.set_num_threads(1)
    ensure_torchvision()
    runtime.install()
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
    while True:
        try:
            module, function, ranks, job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            torch.distributed.init_process_group(
                "gloo", store=torch.distributed.PrefixStore(f"{job}", store), rank=rank, world_size=ranks
            )
            answer = (True, getattr(importlib.import_module(module), function)(**arguments))
        except BaseException:  # it goes to the test, whatever it is
            answer = (False, traceback.format_exc())
        runtime.leave_distributed()
        pipe.send(answer)


class World:
    """The processes, started when they are first needed and again after a job that hung."""

    def __init__(self, ranks: int = RANKS):
        self.size, self.jobs = ranks, 0
        self.processes: list = []
        self.pipes: list[Connection] = []

    def run(self, job: Callable, ranks: int, seconds: float = 600, **arguments: Any) -> list[Any]:
        """`job(**arguments)` on `ranks` processes -> what each returned. AssertionError when one fails or hangs."""
        if not self.processes:
            self._start()
        self.jobs += 1
        for pipe in self.pipes[:ranks]:
            pipe.send((job.__module__, job.__name__, ranks, self.jobs, arguments))
        answers = []
        for rank, pipe in enumerate(self.pipes[:ranks]):
            if not pipe.poll(seconds):
                self.close()
                raise AssertionError(f"{job.__name__}: rank {rank} of {ranks} gave no answer in {seconds} s")
            try:
                answers.append(pipe.recv())
            except EOFError:
                self.close()
                raise AssertionError(f"{job.__name__}: rank {rank} of {ranks} has ended") from None
        failed = [f"rank {rank}:\n{answer}" for rank, (good, answer) in enumerate(answers) if not good]
        assert not failed, f"{job.__name__}\n" + "\n".join(failed)
        return [answer for _, answer in answers]

    def _start(self) -> None:
        import torch

        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs, self.store.port), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The one world of a test session."""
    made = World()
    yield made
    made.close()
