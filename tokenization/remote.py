"""Downloads of whole files from a URL: retries with backoff, then a one-line error.

`TryAgain` says that the store did not answer, so a job that is started again may go on; `UserError` that it answered, and
has no such file, another content under its name, or does not let us read it.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pretrain.system.errors import TryAgain, UserError
from tokenization.files import sha256_of
from tokenization.storage import filesystem_of, is_remote

PAUSES = (
    1.0,
    3.0,
    9.0,
    27.0,
)  # seconds between retries, randomized by half (jitter), so that a hundred readers do not retry at once
SILENCE = 60.0  # HTTP read timeout in seconds
DIFFERENT = 2  # retries for content that differs from the manifest
NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
BUSY = (408, 425, 429)  # HTTP 4xx codes that are temporary
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


class _Different(Exception):
    """Downloaded content differs from the manifest; the message says how."""


def fetch_bytes(url: str) -> bytes:
    """Download a small file. Raises UserError or TryAgain."""

    def read() -> bytes:
        filesystem, inner = _filesystem(url)
        return filesystem.cat_file(inner)

    return _patiently(url, read)


def read_small(path: str | Path) -> bytes:
    """Read a small file from a disk or a URL. Raises OSError for the one, UserError or TryAgain for the other."""
    return fetch_bytes(str(path)) if is_remote(str(path)) else Path(path).read_bytes()


def inside(folder: str | Path, name: str) -> str:
    """Path of a file in a folder or under a URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def fetch_file(url: str, target: Path, entry: dict[str, Any]) -> None:
    """Download a URL to `target` and verify the `bytes` and `sha256` of its manifest entry.

    Raises UserError or TryAgain; what is at `target` is then of no use.
    """

    def read() -> None:
        filesystem, inner = _filesystem(url)
        filesystem.get_file(inner, str(target))
        size = target.stat().st_size
        if size != entry["bytes"]:
            raise _Different(f"{size:,} bytes instead of {entry['bytes']:,}")
        if sha256_of(target) != entry["sha256"]:
            raise _Different("SHA-256 differs")

    try:
        _patiently(url, read)
    except OSError as error:
        raise UserError(
            f"{target.parent}: the cache is full ({error.strerror}): give it room, or a lower limit (data.cache_limit)"
        ) from None


def _patiently(url: str, action: Callable[[], Result]) -> Result:
    different, began = 0, time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return action()
        except _Different as error:
            different += 1
            if different == DIFFERENT or pause is None:
                raise UserError(
                    f"{url}: is not what the manifest says ({error}): restore it, or make the dataset again in "
                    "another place with shard_images.py"
                ) from None
        except NOT_THERE:
            raise UserError(f"{url}: is not there: give the URL of a finished dataset of shard_images.py") from None
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if _refused(error):
                raise UserError(f"{url}: cannot be read ({message}): check the URL and the credentials") from None
            if not _of_the_store(error):
                raise
            if pause is None:
                raise TryAgain(
                    f"{url}: the store does not answer (tried {len(PAUSES) + 1} times in "
                    f"{time.monotonic() - began:.0f} s; {message}): start the run again"
                ) from None
        time.sleep(pause * random.SystemRandom().uniform(0.5, 1.5))  # not the generator of training
    raise AssertionError("the last try returns or raises")


def _refused(error: Exception) -> bool:
    """Whether the store's answer is final (a 4xx status other than busy ones, or no permission), so that a retry is
    useless."""
    status = 0
    for place, name in ((error, "status"), (error, "code"), (getattr(error, "response", None), "status_code")):
        if not status and hasattr(place, name):
            status = getattr(place, name)
    status = status if isinstance(status, int) else 0
    return isinstance(error, PermissionError) or (400 <= status < 500 and status not in BUSY)


def _of_the_store(error: Exception) -> bool:
    """Whether an error may come from the store: OSError of Python's classes, and any class of a library, since each
    fsspec backend has its own. Others are bugs."""
    return isinstance(error, (OSError, EOFError)) or type(error).__module__ != "builtins"


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. Over HTTP a transfer has no time limit, but must not stall."""
    if not url.startswith(("http://", "https://")):
        return filesystem_of(url)
    import aiohttp
    from fsspec.config import conf

    own = conf.get(url.partition(":")[0], {}).get("client_kwargs", {})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return filesystem_of(url, client_kwargs={"timeout": timeout, **own})
