"""Files of a store that hesitates, stays away, cuts its answers or has other content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.system.errors import TryAgain, UserError
from tests.tokenization.store import Request, Store, serving, short_pauses, unavailable
from tokenization import remote
from tokenization.remote import fetch_bytes, fetch_file

CONTENT = bytes(range(256)) * 300
ENTRY = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "PAUSES", remote.PAUSES)
    short_pauses()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/file").write_bytes(CONTENT)
    with serving(tmp_path / "store") as store:
        yield store


def one_line(error: pytest.ExceptionInfo, store: Store, name: str = "file") -> str:
    text = str(error.value)
    assert text.startswith(f"{store.url}/{name}: ") and "\n" not in text
    return text


def test_pauses_grow():
    assert len(remote.PAUSES) >= 3 and all(one < two for one, two in zip(remote.PAUSES, remote.PAUSES[1:]))


def test_a_store_that_is_busy_twice_is_survived(store: Store, tmp_path: Path):
    store.fault = lambda request: request.number <= 2 and unavailable(request)
    assert fetch_bytes(f"{store.url}/file") == CONTENT
    assert store.asked["file"] == 3
    store.asked.clear()
    fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    assert (tmp_path / "copy").read_bytes() == CONTENT and store.asked["file"] == 3


def test_a_store_that_stays_away_is_another_try_of_the_job(store: Store, tmp_path: Path):
    store.fault = unavailable
    with pytest.raises(TryAgain, match=r"does not answer \(tried 5 times.*503") as error:
        fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    one_line(error, store)
    assert store.asked["file"] == 5
    store.server.socket.close()
    with pytest.raises(TryAgain, match="does not answer") as error:
        fetch_bytes(f"{store.url}/file")
    one_line(error, store)


def test_a_store_that_falls_silent_does_not_hang_the_job(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "SILENCE", 0.1)

    def silent(request: Request) -> bool:
        request.answer(CONTENT[:100], promised=len(CONTENT))
        request.wfile.flush()
        time.sleep(0.4)
        return True

    store.fault = lambda request: request.number == 1 and silent(request)
    assert fetch_bytes(f"{store.url}/file") == CONTENT
    assert store.asked["file"] == 2


@pytest.mark.parametrize("promised", [len(CONTENT), 100], ids=["connection lost", "cut at the store"])
def test_a_cut_answer_is_not_accepted(store: Store, tmp_path: Path, promised: int):
    def cut(request: Request) -> bool:
        request.answer(CONTENT[:100], promised=promised)
        request.close_connection = True
        return True

    store.fault = lambda request: request.number == 1 and cut(request)
    fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    assert (tmp_path / "copy").read_bytes() == CONTENT and store.asked["file"] == 2
    store.fault = cut
    with pytest.raises(TryAgain if promised > 100 else UserError) as error:
        fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    one_line(error, store)


def test_other_content_is_the_users_to_mend_if_it_is_there_twice(store: Store, tmp_path: Path):
    flipped = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]

    def flip(request: Request) -> bool:
        request.answer(flipped)
        return True

    store.fault = lambda request: request.number == 1 and flip(request)
    fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    store.fault = flip
    with pytest.raises(UserError, match="SHA-256 differs") as error:
        fetch_file(f"{store.url}/file", tmp_path / "copy", ENTRY)
    one_line(error, store)
    assert store.asked["file"] == 2 + 2


@pytest.mark.parametrize("code, words", [(404, "is not there"), (403, "credentials")])
def test_what_the_store_refuses_is_not_asked_for_again(store: Store, code: int, words: str):
    def refuse(request: Request) -> bool:
        request.answer(b"no", code=code)
        return True

    store.fault = refuse
    with pytest.raises(UserError, match=words) as error:
        fetch_bytes(f"{store.url}/file")
    one_line(error, store)
    assert store.asked["file"] == 1


def test_a_protocol_that_is_not_installed_and_a_fault_of_ours(store: Store, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="nosuch://bucket/file: cannot be opened"):
        fetch_bytes("nosuch://bucket/file")
    monkeypatch.setattr(remote, "_filesystem", lambda url: None)
    with pytest.raises(TypeError):
        fetch_bytes(f"{store.url}/file")


def test_a_full_disk_is_not_the_stores_fault(store: Store, tmp_path: Path):
    full = Path("/dev/full")
    with pytest.raises(UserError, match="cache is full"):
        fetch_file(f"{store.url}/file", full, ENTRY)
