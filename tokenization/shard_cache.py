"""Local cache of a dataset at a URL: files are downloaded on first use, once for all processes of a node.

    CACHE/lock                              held while room is made
    CACHE/FINGERPRINT/index.json, lengths/  fetched when the dataset is opened, never removed
    CACHE/FINGERPRINT/shards/N.BYTES.mds    shard N; the size in the name is its promise while it is being fetched
    CACHE/FINGERPRINT/locks/                one for each file, held while it is fetched or looked at for the first time

A changed dataset has another fingerprint and meets none of the old shards. Locks are the kernel's (flock): a process that
is killed leaves a temporary file, which the next one to fetch that file removes, and no lock.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pretrain.system.errors import UserError
from tokenization.files import sha256_of, temporary_name
from tokenization.remote import fetch_file

GIB = 1 << 30
SHARD = re.compile(r"\.?(\d+)\.(\d+)\.mds(\..*\.tmp)?")  # number and bytes, of a shard or of a download in progress

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cache:
    """Cache folder of this node, and how many GiB of shards it keeps (0: all).

    Shards of all datasets count together, length indices do not.
    """

    folder: Path
    limit: float = 0.0


class ShardCache:
    """Cached files of one dataset. Picklable; safe for threads and processes."""

    def __init__(self, url: str, manifest: dict[str, Any], cache: Cache):
        self.url, self.root, self.limit = url, cache.folder, math.ceil(cache.limit * GIB)
        self.folder = cache.folder / manifest["fingerprint"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self._sound: dict[int, str] = {}  # paths of shards verified by this process
        with _cache_errors(cache.folder):
            for name in ("shards", "lengths", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def shard_name(self, number: int) -> str:
        """Path of a shard, relative to `folder`."""
        return f"shards/{number:06d}.{self.shards[number]['bytes']}.mds"

    def keep(self, entry: dict[str, Any]) -> Path:
        """Path of a manifest file that is no shard, downloaded if it is missing or damaged."""
        path = self.folder / entry["file"]
        return self._first_use(path, entry, self.folder / "locks" / path.name, False, lambda: path)

    def read(self, number: int, action: Callable[[], Result]) -> Result:
        """Result of `action`, which reads shard `number` at its path in the cache.

        The shard may be removed for another one at any moment but when it is used first after it was fetched. Raises
        UserError or TryAgain when it cannot be had.
        """
        if number in self._sound:
            try:
                return _used(self._sound[number], action)
            except FileNotFoundError:
                pass  # it was evicted, before or just now
        path, lock = self.folder / self.shard_name(number), self._lock_of(self.folder, number)
        result = self._first_use(path, self.shards[number], lock, True, lambda: _used(str(path), action))
        self._sound[number] = str(path)
        return result

    def fetch_ahead(self, number: int) -> None:
        """Prefetch shard `number`, unless it is there or being downloaded. Raises UserError or TryAgain."""
        path = self.folder / self.shard_name(number)
        if path.exists():
            return
        with _locked_if_free(self._lock_of(self.folder, number)) as free:
            if free and not path.exists():
                self._fetch(path, self.shards[number], True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sound": {}}

    def _first_use(
        self, path: Path, entry: dict[str, Any], lock: Path, is_shard: bool, action: Callable[[], Result]
    ) -> Result:
        """Download a file once for all waiting processes; it stays until `action` has used it."""
        with _locked(lock, shared=True):
            if _is_sound(path, entry):
                return action()
        with _locked(lock):
            if not _is_sound(path, entry):
                self._fetch(path, entry, is_shard)
            return action()

    def _fetch(self, path: Path, entry: dict[str, Any], is_shard: bool) -> None:
        """Download a file whose lock is held."""
        temporary = temporary_name(path)
        try:
            with _cache_errors(path.parent):
                for useless in (path, *path.parent.glob(f".{path.name}.*.tmp")):
                    useless.unlink(missing_ok=True)
                with self._room_lock(is_shard):
                    if is_shard and self.limit:
                        self._make_room(entry["bytes"])
                    temporary.touch()
            fetch_file(f"{self.url}/{entry['file']}", temporary, entry)
            with self._room_lock(is_shard):  # atomic, so that the size count sees it once
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _room_lock(self, is_shard: bool) -> Any:
        return _locked(self.root / "lock") if is_shard and self.limit else nullcontext()

    def _make_room(self, size: int) -> None:
        """Evict the least recently used shards until so many bytes more are within the limit.

        A shard that a process is fetching or looking at stays; so the limit is exceeded where it is smaller than what
        all processes need at the same moment.
        """
        found = []
        for file in (file for folder in self.root.glob("*/shards") for file in os.scandir(folder)):
            match = SHARD.fullmatch(file.name)
            if match:
                path = Path(file.path)
                lock = self._lock_of(path.parents[1], int(match[1]))
                with suppress(FileNotFoundError):  # leftovers of a killed process were just removed
                    found.append((file.stat().st_mtime_ns, int(match[2]), path, lock))
        used = sum(bytes_of for _, bytes_of, _, _ in found)
        for _, bytes_of, path, lock in sorted(found):
            if used + size <= self.limit:
                break
            with _locked_if_free(lock) as free:
                if free:
                    path.unlink(missing_ok=True)
                    used -= bytes_of

    @staticmethod
    def _lock_of(folder: Path, number: int) -> Path:
        return folder / "locks" / f"{number:06d}"


def _used(path: str, action: Callable[[], Result]) -> Result:
    """Result of `action`; updates the file's last-use time, to the nanosecond."""
    now = time.time_ns()  # the kernel's clock has a granularity of milliseconds
    os.utime(path, ns=(now, now))
    return action()


def _is_sound(path: Path, entry: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock, exclusive or shared."""
    with _cache_errors(path.parent):
        file = open(path, "ab")  # noqa: SIM115
    with file:
        with _cache_errors(path.parent):
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def _locked_if_free(path: Path) -> Iterator[bool]:
    """Try to hold a lock without waiting -> whether it is held."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Disk errors of the cache as UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be used as a cache ({error.strerror}): give a folder of yours "
            "on a disk of this node (data.cache)"
        ) from None
