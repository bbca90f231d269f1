"""Commands forked from a process that has the libraries imported: what they find there, and which processes are theirs."""

from __future__ import annotations

import os
import time

from tests.command_server import ANEW
from tests.commands import CommandServer, processes_of

SCRIPT = """
import sys
print("torch" in sys.modules, "pretrain.engines.megatron" in sys.modules)
import pretrain.engines
print(hasattr(pretrain.engines, "megatron"), "pretrain.runtime" in sys.modules)
"""


def test_the_projects_modules_are_imported_anew_where_they_are_asked_for_so(commands: CommandServer, tmp_path):
    """A module that is there hides that another one cannot be imported before it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    assert commands.run(tmp_path / "script.py").out.split() == ["True", "True", "True", "True"]
    assert commands.run(tmp_path / "script.py", hook=ANEW).out.split() == ["True", "False", "False", "True"]


def test_processes_of_a_session_are_found_and_no_others(commands: CommandServer, tmp_path):
    (tmp_path / "script.py").write_text("import subprocess; subprocess.run(['sleep', '1000'])")
    running = commands.start(tmp_path / "script.py")
    running.wait_until(lambda: len(running.processes()) == 2)
    assert running.pid in running.processes() and os.getpid() not in running.processes()
    for pid in processes_of({running.pid}):
        os.kill(pid, 9)
    assert running.wait().code == -9
    end = time.monotonic() + 60
    while running.processes():  # the other one is still on its way out
        assert time.monotonic() < end
        time.sleep(0.01)
