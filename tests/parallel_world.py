"""Four processes that stay for the whole test session and take jobs: imports are paid once, groups are made anew.

They are forked from one that has the imports behind it (`tests.world_imports`), so that others come at once after a job that hung.

A job is a function of this repository that is called on the first n ranks with the same arguments, as torchrun would
start it, but for the environment: its process group is there already. What it returns on each rank comes back.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

RANKS = 4
GRACE = 60  # seconds that the others have after one has failed


def serve(rank: int, pipe: Connection, port: int) -> None:
    """What each process does: a job after the other, until the other end of the pipe is closed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # a rank whose job ends at once would close its connections while another one is still making its own
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
    import torch

    from pretrain import runtime

    torch.set_num_threads(1)
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
        answers = self._answers(ranks, seconds)
        failed = [f"rank {rank}:\n{answer}" for rank, (good, answer) in sorted(answers.items()) if not good]
        if len(answers) < ranks or not all(process.is_alive() for process in self.processes):
            self.close()
        if len(answers) < ranks:
            silent = ", ".join(str(rank) for rank in range(ranks) if rank not in answers)
            failed.append(
                f"rank {silent} of {ranks} gave no answer in {seconds} s, or after another had failed or ended"
            )
        assert not failed, f"{job.__name__}\n" + "\n".join(failed)
        return [answers[rank][1] for rank in range(ranks)]

    def _answers(self, ranks: int, seconds: float) -> dict[int, tuple[bool, Any]]:
        """What each rank answers, by rank; without those that are silent for `seconds`, or GRACE seconds after a failure."""
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + seconds
        while len(answers) < ranks:
            waiting = {pipe: rank for rank, pipe in enumerate(self.pipes[:ranks]) if rank not in answers}
            ready = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                try:
                    answers[waiting[pipe]] = pipe.recv()
                except EOFError:
                    answers[waiting[pipe]] = (False, f"rank {waiting[pipe]} of {ranks} has ended")
                if not answers[waiting[pipe]][0]:
                    end = min(end, time.monotonic() + GRACE)
        return answers

    def _start(self) -> None:
        import torch

        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        forked = (
            not torch.cuda.is_available()
        )  # a process with CUDA must not be forked, and looking for GPUs makes it one
        context = multiprocessing.get_context("forkserver" if forked else "spawn")
        if forked:
            context.set_forkserver_preload(["tests.world_imports"])
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
