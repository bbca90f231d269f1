"""Commands in processes of their own, started quickly: see `tests/command_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Finished:
    """How a command ended: its exit code, or minus the number of the signal that ended it, and what it printed."""

    code: int
    out: str
    err: str


def assert_refused(done: Finished, *parts: str) -> None:
    """Exit code 2, and one line that names what is wrong."""
    assert done.code == 2, (done.code, done.err)
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert all(part in lines[0] for part in parts), lines[0]


@dataclass(eq=False)
class Running:
    """A command that was started. It leads a session, whose number is its own."""

    server: CommandServer
    pid: int
    out: Path
    err: Path

    def wait(self) -> Finished:
        """Until it ends, by itself or by a signal."""
        code = self.server.ask({"wait": self.pid})["code"]
        return Finished(code, self.out.read_text(encoding="utf-8"), self.err.read_text(encoding="utf-8"))

    def processes(self) -> list[int]:
        """What is alive of its session: itself and all that it started."""
        return processes_of({self.pid})

    def wait_until(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Until `condition()`; it is an error that the command ends before, or that it takes too long."""
        end, look = time.monotonic() + seconds, 0.0
        while not condition():
            if time.monotonic() >= look:  # it reads a file of every process of the machine
                assert time.monotonic() < end and self.processes(), self.out.read_text() + self.err.read_text()
                look = time.monotonic() + 0.5
            time.sleep(0.02)


def processes_of(sessions: set[int]) -> list[int]:
    """What is alive of these sessions, each of the number of the process that leads it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        pid = int(stat.parent.name)
        if state != "Z" and (
            pid in sessions or int(session) in sessions
        ):  # just forked, it does not lead its session yet
            found.append(pid)
    return found


@dataclass(eq=False)
class CommandServer:
    """One process with the heavy imports done, from which commands are forked. Started when it is first needed."""

    folder: Path
    root: Path = ROOT  # of the sources
    process: subprocess.Popen | None = None
    started: list[Running] = field(default_factory=list)

    def ask(self, request: dict) -> dict:
        """The answer to a request."""
        if self.process is None:
            command = [sys.executable, "-W", "ignore", "-m", "tests.command_server"]
            self.process = subprocess.Popen(command, cwd=self.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the command server has ended"
        return json.loads(line)

    def start(self, script: str, *arguments: object, hook: tuple = (), cwd: Path = ROOT) -> Running:
        """Start a script of the repository. `hook` is (module, function, arguments ...), called in it first."""
        out, err = (self.folder / f"{len(self.started)}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        request = {
            "argv": [str(self.root / script), *map(str, arguments)],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "hook": list(hook),
        }
        self.started.append(Running(self, self.ask({"run": request})["pid"], out, err))
        return self.started[-1]

    def run(self, script: str, *arguments: object, hook: tuple = (), cwd: Path = ROOT) -> Finished:
        """Start a script and wait for it."""
        return self.start(script, *arguments, hook=hook, cwd=cwd).wait()

    def close(self) -> None:
        """End the server and whatever is left of what it started."""
        for pid in processes_of({running.pid for running in self.started}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """Starts commands; the one server of a test session."""
    server = CommandServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()
