"""Runs the project's commands in processes forked from one that has the heavy imports behind it.

A command forked here is a process of its own, with its own arguments, output files, exit code and signals; it only
saves the seconds that importing torch and its kin takes. `tests/commands.py` talks to it, a JSON line each way.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing import util
from typing import NoReturn


def main() -> None:
    """Serve until standard input ends: {"run": request} -> {"pid"}, {"wait": pid} -> {"code"} (negative: a signal)."""
    import torch

    from pretrain import runtime
    from pretrain.system.light_imports import mds_reader, mds_writer, vq_model

    torch.set_num_threads(1)
    runtime.install()
    for imported in (vq_model, mds_reader, mds_writer):
        imported()
    import transformers  # noqa: F401

    import model.hf.modeling_uni_x  # noqa: F401
    import pretrain.engines.megatron  # noqa: F401
    import pretrain.loader  # noqa: F401

    fork_the_server_of_workers()
    gc.freeze()  # a child then neither copies nor takes apart what it shares with this process
    while line := sys.stdin.buffer.raw.readline():  # unbuffered: nothing of the next request is left to a child
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                become(request["run"])
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def become(request: dict) -> NoReturn:
    """In the child: its own process group, output and arguments; then the command, as if started by its user."""
    os.setsid()
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(request[name], WRITE, 0o644) for name in ("out", "err"))]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.path.insert(0, os.getcwd())
    os.chdir(request["cwd"])
    if request["hook"]:
        module, name, *arguments = request["hook"]
        getattr(importlib.import_module(module), name)(*arguments)
    run_to_its_end(request["argv"])


def run_to_its_end(argv: list[str]) -> NoReturn:
    """In a forked process: the script argv[0], and the end of the process."""
    sys.argv = argv
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # these two are what the interpreter does at its end,
    atexit._run_exitfuncs()  # before it takes all modules apart, which is slow and of no interest here
    sys.stdout.flush()
    os._exit(code)


KEPT = ("pretrain.runtime", "pretrain.system", "model.hf")
"""What has changed libraries, or is registered in one: done again it would not be what a new process does."""


def forget_the_project() -> None:
    """A hook: the command imports the project's modules anew, in its own order, so that a circle which another order hides
    ends it, as in a Python of its own.
    """
    for name in list(sys.modules):
        package, _, module = name.rpartition(".")
        ours = name.split(".")[0] in ("model", "pretrain", "tokenization", "tools", "slurm")
        if ours and package and not any(name == kept or name.startswith(f"{kept}.") for kept in KEPT):
            del sys.modules[name]
            if package in sys.modules:
                vars(sys.modules[package]).pop(module, None)


def fork_scripts_that_are_run() -> None:
    """A hook: Python scripts that a command starts by `subprocess.run` and waits for are forked from it too.

    The command and each of them import the project's modules anew.
    """
    forget_the_project()
    run, known = subprocess.run, {"env", "stdout", "stderr", "check", "preexec_fn"}

    def run_forked(command, **options):
        if command[0] != sys.executable or command[1].startswith("-") or not options.keys() <= known:
            return run(command, **options)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for number, name in ((1, "stdout"), (2, "stderr")):
                if options.get(name) is not None:
                    os.dup2(1 if options[name] == subprocess.STDOUT else options[name].fileno(), number)
            if options.get("preexec_fn"):
                options["preexec_fn"]()
            os.environ.update(options.get("env") or {})
            forget_the_project()
            run_to_its_end([str(word) for word in command[1:]])
        _, status = os.waitpid(pid, 0)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status))

    subprocess.run = run_forked


FORKED = (__name__, fork_scripts_that_are_run.__name__)
ANEW = (__name__, forget_the_project.__name__)
"""For `CommandServer.start` and `run`."""


def fork_the_server_of_workers() -> None:
    """Let multiprocessing's "forkserver" begin as a fork of its process too, with the imports that it would make.

    What an `exec` would have done is done here: nothing but the files that are passed stays open, signals have their
    usual effect. The mask of blocked signals is inherited either way.
    """
    execute = util.spawnv_passfds

    def spawnv_passfds(path, args, passed):
        if "multiprocessing.forkserver" not in args[-1]:
            return execute(path, args, passed)
        pid = os.fork()
        if pid == 0:
            for file in map(int, os.listdir("/proc/self/fd")):
                if file > 2 and file not in passed:
                    with contextlib.suppress(OSError):  # the one that listed the others
                        os.close(file)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                exec(args[-1], {})
            finally:
                os._exit(0)
        return pid

    util.spawnv_passfds = spawnv_passfds


WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

if __name__ == "__main__":
    main()
