"""The queue between clients and the model: what goes together, in which order, and what is never begun."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from tools.generation.prompts import Sampling
from tools.serving.api_error import ApiError
from tools.serving.jobs import Job, JobQueue
from tools.serving.worker import partial_moments

PICTURES = Sampling(4.0, 1.0, 0, 1.0, 0)


@pytest.fixture
def queue():
    return JobQueue()


def job(task: str = "draw", results: int = 1, sampling: Sampling = PICTURES) -> Job:
    async def made() -> Job:
        return Job(task, lambda codes: ([], None), [], list(range(results)), sampling)

    return asyncio.run(made())


def test_the_oldest_is_next_with_all_of_its_kind(queue):
    first, other, same = job(), job("text"), job(results=2)
    hotter = job(sampling=replace(PICTURES, temperature=0.5))
    for one in (first, other, hotter, same):
        queue.put(one)
    assert queue.take(8) == [first, same]
    assert queue.take(8) == [other] and queue.take(8) == [hotter]


def test_a_batch_has_room_for_so_many_results(queue):
    jobs = [job(results=3), job(results=3), job(results=1), job(results=9)]
    for one in jobs:
        queue.put(one)
    assert queue.take(4) == [jobs[0], jobs[2]]
    assert queue.take(4) == [jobs[1]] and queue.take(4) == [jobs[3]]  # larger than any batch: alone


def test_texts_go_together_whatever_their_settings(queue):
    jobs = [job("text"), job("text", sampling=replace(PICTURES, text_temperature=0.5))]
    for one in jobs:
        queue.put(one)
    assert queue.take(8) == jobs


def test_clients_that_were_answered_together_are_waited_for(queue):
    def later(*jobs: Job) -> threading.Thread:
        thread = threading.Thread(target=lambda: [queue.put(one) for one in jobs])
        thread.start()
        return thread

    batch, again = [job() for _ in range(3)], [job() for _ in range(3)]
    for one in batch:
        queue.put(one)
    assert queue.take(8) == batch
    queue.put(again[0])
    thread = later(*again[1:])
    assert queue.take(8, patience=60) == again  # not 60 seconds: the batch is as full as the last one
    thread.join()
    queue.put(batch[0])
    assert queue.take(8, patience=0.01) == batch[:1]  # they may not come back
    queue.put(batch[1])
    assert queue.take(8, patience=60) == batch[1:2]  # one was answered, and one is there


def test_cancelled_jobs_are_not_begun(queue):
    kept, dropped = job(), job()
    queue.put(dropped)
    queue.put(kept)
    queue.cancel(dropped)
    assert queue.take(8) == [kept] and dropped.cancelled
    queue.cancel(kept)  # it is being worked on
    assert kept.cancelled


def test_a_closed_queue_wakes_its_worker_and_refuses(queue):
    taken = []
    worker = threading.Thread(target=lambda: taken.append(queue.take(8)))
    worker.start()
    queue.close(ApiError(503, "closing"))
    worker.join(10)
    assert taken == [[]]
    with pytest.raises(ApiError, match="shutting down"):
        queue.put(job())


@pytest.mark.parametrize(
    ("partial", "codes", "moments"), [(0, 16, []), (3, 16, [4, 8, 12]), (1, 4, [2]), (16, 4, [1, 2, 3]), (5, 1, [])]
)
def test_half_drawn_pictures_come_in_equal_steps(partial, codes, moments):
    assert partial_moments(partial, codes) == moments
