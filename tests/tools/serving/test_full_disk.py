"""An upload for which the server has no room is an answer with a status of its own, and one line in the log."""

from __future__ import annotations

import asyncio
import json
import resource
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from tests.tools.serving.test_admission import body
from tools.serving.app import on_disk_error
from tools.serving.images import edits_endpoint
from tools.serving.limits import Limits


def upload(size: int) -> Request:
    """A form with a file of so many bytes."""
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"multipart/form-data; boundary=B")]}
    return Request(scope, body(head + b"x" * size + b"\r\n--B--\r\n", b""))


def test_an_upload_without_room_is_refused_in_a_line(capsys):
    request, before = upload(3 << 20), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            asyncio.run(edits_endpoint(SimpleNamespace(limits=Limits()))(request))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    response = asyncio.run(on_disk_error(request, raised.value))
    assert response.status_code == 507 and json.loads(response.body)["error"]["code"] == "insufficient_storage"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: an upload was refused: ") and "File too large: make room there" in line


def test_another_error_of_the_system_stays_a_fault():
    with pytest.raises(FileNotFoundError):
        asyncio.run(on_disk_error(upload(1), FileNotFoundError(2, "No such file")))
