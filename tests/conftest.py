"""Settings of the whole suite: one torch thread a process, and the CPU stand-ins that the libraries need."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from model.torchvision_compat import ensure_torchvision
from pretrain import runtime
from tests.commands import commands  # noqa: F401  (fixtures for all tests)
from tests.parallel_world import world  # noqa: F401
from tests.pretrain.tiny_run import tiny_data  # noqa: F401
from tests.slurm.cluster import cluster  # noqa: F401

torch.set_num_threads(1)
ensure_torchvision()
runtime.install()  # before anything imports megatron
