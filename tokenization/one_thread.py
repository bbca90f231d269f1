"""Single-threaded encoding of each image on a CPU, as many images at a time as there are threads.

The division of sums over threads changes their rounding, and with it codes whose latent is on a boundary. With one thread
per image the result does not depend on the number of threads, on the batch or on the order. It is also faster than all
threads on one image, since none waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Persistent thread pool of this process; a forked process gets its own, since threads do not survive a fork."""
    return ThreadPoolExecutor(threads, "picture", torch.set_num_threads, (1,))


def one_thread_each(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Yield `work(item)` of each item, in order and without gradients, in torch.get_num_threads() threads with one core
    each.

    Raises what `work` raised first. The number of threads of the calling thread stays what it was.
    """
    threads = torch.get_num_threads()

    def alone(item: T) -> R:
        with torch.no_grad():  # a setting of each thread
            return work(item)

    try:
        if min(threads, len(items)) <= 1:
            torch.set_num_threads(1)
            return [alone(item) for item in items]
        return list(_pool(os.getpid(), threads).map(alone, items))
    finally:
        torch.set_num_threads(threads)  # it also says how many threads a thread gets that begins after this
