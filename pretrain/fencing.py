"""Fencing of a run folder: a process of an earlier attempt that is cut off but alive must not write there any more.

A scheduler can restart a run while a rank of the previous attempt still runs behind a network partition. Not every file
system has locks across nodes, so the owner is a file: a start writes its attempt number (fencing token), which must not be
smaller than the one there, and deletes partial files of older attempts. An older attempt finds another owner before it
renames anything; if it checked too early, the file that it would rename is deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.system.errors import RunFailed, UserError
from pretrain.system.words import shown
from tokenization.files import is_temporary, write_atomically

VARIABLE = "UNIX_RUN_ATTEMPT"  # fencing token, set by whoever restarts the processes; the larger number owns the folder
PARTIAL = ".partial"
INTERRUPTED = "interrupted and saved"  # an event in events.jsonl


class TakenOver(RunFailed):
    """A newer attempt owns the run folder (fencing)."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run, on all its processes; its number is the fencing token."""

    run: Path
    number: int = 0
    owner: str = ""  # host, process and a random part: distinguishes two starts with one number

    def check(self) -> None:
        """Raises TakenOver when a newer attempt owns the folder; a file that cannot be read is no evidence."""
        found = _read(self.run)
        if found and (found["number"], found["owner"]) != (self.number, self.owner):
            raise TakenOver(
                f"{self.run}: attempt {found['number']} ({found['owner']}) has taken over from attempt {self.number}: "
                "this one stops, and has written nothing since"
            )

    def owns(self) -> bool:
        """Whether this attempt owns the folder, by `check`."""
        try:
            self.check()
        except TakenOver:
            return False
        return True

    def partial(self, final: Path) -> Path:
        """Temporary path of this attempt for what becomes `final` by a rename."""
        return final.with_name(f"{final.name}.{self.number}-{self.owner.rpartition('-')[2]}{PARTIAL}")


def number_of_this_start(run: Path) -> int:
    """Attempt number (fencing token) from the environment, else the folder's. Raises UserError, or TakenOver for an
    older number."""
    there = (_read(run) or {"number": 0})["number"]
    given = os.environ.get(VARIABLE, "")
    if not given:
        return there
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise UserError(
            f"{VARIABLE} is {shown(given)}: set it to a whole number that grows with each start, or leave it out"
        )
    if int(given) < there:
        raise TakenOver(f"{run}: attempt {there} owns this folder, this is attempt {given}: it was started too late")
    return int(given)


def may_take_over(run: Path) -> bool:
    """Whether the environment says that this start follows the one that owns the folder."""
    return number_of_this_start(run) > (_read(run) or {"number": 0})["number"]


def claim(run: Path) -> Attempt:
    """Take ownership of the folder for this start, and delete partial files of others. One process of the run calls
    it."""
    number = number_of_this_start(run)
    attempt = Attempt(run, number, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    run.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in asdict(attempt).items() if key != "run"}
    write_atomically(run / "owner.json", (json.dumps(values) + "\n").encode())
    for leftover in (run / "checkpoints").glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in filter(is_temporary, run.iterdir()):
        leftover.unlink(missing_ok=True)
    return attempt


def _read(run: Path) -> dict | None:
    try:
        found = json.loads((run / "owner.json").read_text(encoding="utf-8"))
        return {"number": int(found["number"]), "owner": str(found["owner"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
