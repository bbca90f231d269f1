"""Bodies that come too slowly or grow too large, and hosts by other names than the server's."""

from __future__ import annotations

import asyncio

import pytest
from starlette.datastructures import Headers

from tools.serving.admission import AdmissionControl, Callers, check_query
from tools.serving.api_error import ApiError
from tools.serving.limits import Limits
from tools.serving.metrics import ServerMetrics

NAMES = ("localhost", "::1")


def gate(**limits) -> AdmissionControl:
    return AdmissionControl(None, Limits(**limits), Callers(NAMES), lambda: 0.0, ServerMetrics())


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


@pytest.mark.parametrize("query", [b"n=3", b"stream=true", b"limit=1", b"seed=", b"api-version=1&x=%ff&["])
def test_settings_in_an_address_are_refused(query):
    with pytest.raises(ApiError, match="'(n|stream|limit|seed|x)' in the address is not read") as problem:
        check_query({"path": "/v1/models", "query_string": query})
    assert problem.value.status == 400


@pytest.mark.parametrize(
    "path", ["/v1/models?api-version=1", "/v1/responses/a?stream=false&include[]=b", "/page/a.js?v=2"]
)
def test_what_asks_for_nothing_in_an_address_is_accepted(path):
    path, _, query = path.partition("?")
    check_query({"path": path, "query_string": query.encode()})


def test_a_compressed_body_is_refused_by_name():
    gate().check_room(Headers({"content-encoding": "identity"}))
    with pytest.raises(ApiError, match="Content-Encoding 'gzip': send it as it is") as problem:
        gate().check_room(Headers({"content-encoding": "gzip"}))
    assert problem.value.status == 400


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"host": "localhost:8000"}, True),
        ({"host": "LocalHost:8000"}, True),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, True),
        ({"host": "10.0.0.7:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "localhost:8000", "origin": "https://chat.example.org"}, True),
        ({"host": "localhost:8000", "origin": "http://chat.example.org"}, False),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, False),
        ({"host": "10.0.0.7:8000", "origin": "http://10.0.0.8:8000"}, False),
        ({"host": "localhost:8000", "origin": "null"}, False),
        ({"host": "localhost:8000", "origin": "localhost:8000"}, False),
        ({"host": "evil.example"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({"host": "10.0.0.7.evil.example"}, False),
        ({}, True),
        ({"origin": "http://"}, False),
    ],
)
def test_only_callers_that_use_its_own_name_are_answered(headers, answered):
    callers = Callers(NAMES, ["https://chat.example.org"])
    if answered:
        callers.check("/v1/models", Headers(headers))
    else:
        with pytest.raises(ApiError) as problem:
            callers.check("/v1/models", Headers(headers))
        assert problem.value.status == 403
    callers.check("/health", Headers(headers))
    if "origin" not in headers:
        Callers(None).check("/v1/models", Headers(headers))
    Callers(None, ["*"]).check("/v1/models", Headers(headers))


@pytest.mark.parametrize(
    ("authorization", "answered"),
    [
        ("Bearer one", True),
        ("bearer  two", True),
        ("Bearer one two", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Basic one", False),
        ("one", False),
        ("Bearer on", False),
        ("Bearer \xff", False),
        ("", False),
    ],
)
def test_a_key_opens_the_door_and_nothing_else_does(authorization, answered):
    callers = Callers(NAMES, keys=["one", "two"])
    headers = Headers({"host": "evil.example", "origin": "http://evil.example", "authorization": authorization})
    for path in ("/v1/models", "/v1/chat/completions", "/metrics"):
        if answered:
            callers.check(path, headers)
            continue
        with pytest.raises(ApiError) as problem:
            callers.check(path, headers)
        assert problem.value.status == 401 and problem.value.code == "invalid_api_key"
    for path in ("/", "/page/page.js", "/health", "/openapi.json"):
        callers.check(path, headers)
