"""The model's thread outlives a request that it fails at."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.tools.tiny_export import write_export
from tools.export.folder import open_export
from tools.generation.prompts import Request, Sampling, prompt_ids
from tools.serving.api_error import ApiError
from tools.serving.jobs import Event, Job, JobQueue
from tools.serving.metrics import ServerMetrics
from tools.serving.worker import Worker

SAMPLING = Sampling(4.0, 1.0, 0, 1.0, 0, max_new_tokens=3)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return open_export(write_export(tmp_path_factory.mktemp("worker") / "tiny"))


def fails(codes):
    raise RuntimeError("as a GPU without memory does")


@pytest.mark.parametrize("task", ["draw", "text"])
def test_a_failure_is_told_and_the_next_job_is_done(export, capsys, task):
    async def run() -> tuple[list[Event], list[Event]]:
        queue = JobQueue()
        worker = Worker(export, queue, 4, ServerMetrics())
        bad = Job(task, fails, [], [1], SAMPLING)
        good = Job(task, lambda codes: prompt_ids(export, task, Request("a cat"), codes), [], [1], SAMPLING)
        good.sampling = replace(SAMPLING, temperature=0.5)  # pictures: a batch of its own
        queue.put(bad)
        worker.start()
        told = [await bad.events.get()]
        queue.put(good)
        done = []
        while not done or done[-1].kind != "end":
            done.append(await good.events.get())
        queue.close(ApiError(503, "closing"))
        await asyncio.to_thread(worker.join, 10)
        assert not worker.is_alive()
        return told, done

    (told,), done = asyncio.run(run())
    assert told.kind == "error" and told.value.status == 500 and "GPU" not in told.value.message
    assert [event.kind for event in done] == [*{"draw": ["picture"], "text": ["text", "stopped"]}[task], "end"]
    assert "as a GPU without memory does" in capsys.readouterr().err


def test_texts_are_encoded_by_several_threads_at_once(export):
    """The event loop measures prompts while the model's thread makes others."""
    texts = [f"a prompt of number {number} " * 50 for number in range(400)]
    encode = getattr(export.encode, "__wrapped__", export.encode)
    expected = [encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode, texts)) == expected
