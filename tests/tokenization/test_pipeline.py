"""Threads: prefetching, encoding and writing keep the order of the input, a bounded lead, and end when they should."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.system.errors import UserError
from tests.tokenization.corpora import picture
from tokenization.encode import DocumentEncoder, Publisher, Stopwatch
from tokenization.pipeline import prefetched
from tokenization.preprocess import open_image, preprocess
from tokenization.vq import load_vq

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


def test_what_is_written_comes_in_order_and_nothing_after_a_failure():
    done: list[str] = []
    with Publisher() as publisher:
        for name in "abc":
            publisher.submit(lambda name=name: done.append(name))
        publisher.wait()
        assert done == ["a", "b", "c"]
        hold = threading.Event()

        def fail() -> None:
            hold.wait(30)
            raise OSError("the disk is full")

        publisher.submit(fail)
        publisher.submit(lambda: done.append("the file is finished"))  # as if all its parts were there
        hold.set()
        with pytest.raises(OSError, match="the disk is full"):
            publisher.wait()
        publisher.submit(lambda: done.append("the next file"))
    assert done == ["a", "b", "c"]


def test_the_encoders_thread_gives_the_codes_of_this_one_and_its_errors(vq_folder: Path):
    vq, watch = load_vq(vq_folder), Stopwatch()
    pictures = [preprocess(open_image(picture(seed)), 16) for seed in range(12)]
    with DocumentEncoder(vq, watch) as encoder:
        assert encoder.pool.submit(torch.get_num_threads).result() == torch.get_num_threads()
        batches = [encoder.submit(pictures[at : at + 3]) for at in range(0, 12, 3)]
        assert len(encoder.under_way) <= 2
        codes = [grid for batch in batches for grid in batch.result()]
        assert (vq.encode(pictures) == codes).all() and watch.seconds["encoding"] > 0
        odd = encoder.submit([image.resize((15, 15)) for image in pictures[:2]])
        with pytest.raises(UserError, match="15 x 15 pixels"):
            odd.result()
    assert not {thread.name for thread in threading.enumerate() if thread.name.startswith(("encode", "write"))}
