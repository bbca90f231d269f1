"""Prefetching: the order of the input, a bounded lead, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tokenization.pipeline import prefetched

WORKERS = (0, 1, 3)


def threads() -> set[str]:
    return {thread.name.split("_")[0] for thread in threading.enumerate()} & {"read", "prepare"}


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_the_order_of_the_items(workers: int):
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(prefetched(iter(range(50)), work, workers, ahead=4)) == [item * item for item in range(50)]
    assert not threads()


def test_items_are_drawn_ahead_but_only_so_far():
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    results = prefetched(items(), lambda item: item, 2, ahead=5)
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while len(drawn) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(drawn) == 6  # five in hand, and the next one waiting for a place
    results.close()
    assert not threads()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_the_work_comes_where_its_result_would(workers: int):
    results = prefetched(iter([4, 2, 0, 1]), lambda item: 8 // item, workers, ahead=2)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_the_reader_comes_after_what_was_read(workers: int):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    results = prefetched(items(), str, workers, ahead=9)
    assert [next(results), next(results)] == ["1", "2"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)
    assert not threads()


@pytest.mark.parametrize("workers", WORKERS)
def test_closing_early_stops_the_threads(workers: int):
    results = prefetched(iter(range(1000)), str, workers, ahead=3)
    assert next(results) == "0"
    results.close()
    assert not threads()
