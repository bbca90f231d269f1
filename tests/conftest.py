"""Settings of the whole suite: one torch thread a process, the CPU stand-ins that the libraries need, and its spreading."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile

# Hundreds of processes import the same modules: where the environment forbids it, none would keep what it has compiled.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "ATEN_CPU_CAPABILITY" in os.environ:  # torch would take code for other vectors from the folder of all
    of_this = f"torchinductor_{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), of_this))
# A job in the background ignores Ctrl-C, and so would the processes that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# transformers copies the code of exports there by the last name of their folder, and one worker may import what another is just
# copying. Not `setdefault`: a worker inherits the variable of the process that starts it.
MODULES = os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="uni_x_modules_")

import pytest
from hypothesis import HealthCheck, settings

from tests import spread
from tests.commands import commands  # noqa: F401  (fixtures for all tests)
from tests.parallel_world import world  # noqa: F401
from tests.pretrain.tiny_run import shaped_data, tiny_data  # noqa: F401
from tests.slurm.cluster import cluster  # noqa: F401

# How long an example takes, or how fast examples are made, is the load of the machine.
settings.register_profile("suite", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, in every process that runs tests."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # this process hands tests to workers, and needs nothing of torch
    import torch

    from pretrain import runtime

    torch.set_num_threads(1)
    runtime.install()  # before anything imports megatron


def pytest_unconfigure() -> None:
    """At the end of each process that runs tests; a worker does not come to what `atexit` has."""
    shutil.rmtree(MODULES, ignore_errors=True)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`."""
    return spread.workers()


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> spread.Scheduler:
    """What shares costly fixtures goes to one worker."""
    return spread.scheduler(config, log)


def pytest_collection(session: pytest.Session) -> None:
    """In a worker: what others import first it finds compiled."""
    worker = getattr(session.config, "workerinput", None)
    if worker:
        spread.import_in_turn(session.config.args, int(worker["workerid"].removeprefix("gw")), worker["workercount"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by what tests take, and the longest groups first."""
    spread.mark(items)
    spread.put_in_order(items)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage need go over it again, and many a test ends with one."""
    gc.collect()
    gc.freeze()
