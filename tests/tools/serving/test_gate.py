"""Bodies that come too slowly or grow too large, and hosts by other names than the server's."""

from __future__ import annotations

import asyncio

import pytest
from starlette.datastructures import Headers

from tools.serving.api_error import ApiError
from tools.serving.gate import Gate
from tools.serving.limits import Limits

NAMES = ("localhost", "::1")


def gate(hosts=NAMES, **limits) -> Gate:
    return Gate(None, Limits(**limits), hosts, lambda: 0.0)


async def read(receive) -> int:
    """Read a body to its end -> its bytes."""
    size = 0
    while True:
        message = await receive()
        size += len(message["body"])
        if not message["more_body"]:
            return size


def body(*parts: bytes):
    """A `receive` that gives these parts, then waits for more that never comes, unless the last one is empty."""
    left = list(parts)

    async def receive():
        if not left:
            await asyncio.sleep(60)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": part != b""}

    return receive


def test_a_body_is_read_within_its_time_and_size():
    async def run(receive, **limits):
        return await read(gate(**limits).limited(receive))

    assert asyncio.run(run(body(b"ab", b"cd", b""), body_bytes=4)) == 4
    with pytest.raises(ApiError, match="larger than 3 bytes") as problem:
        asyncio.run(run(body(b"ab", b"cd", b""), body_bytes=3))
    assert problem.value.status == 413
    with pytest.raises(ApiError, match=r"took over 0\.05 s") as problem:
        asyncio.run(run(body(b"ab"), body_seconds=0.05))
    assert problem.value.status == 408


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"host": "localhost:8000"}, True),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, False),
        ({"host": "localhost:8000", "origin": "null"}, False),
        ({"host": "evil.example"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({}, False),
    ],
)
def test_only_callers_that_use_its_own_name_are_answered(headers, answered):
    if answered:
        gate().check_caller(Headers(headers))
    else:
        with pytest.raises(ApiError) as problem:
            gate().check_caller(Headers(headers))
        assert problem.value.status == 403
    if "origin" not in headers:
        gate(hosts=None).check_caller(Headers(headers))
