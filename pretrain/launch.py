"""Environment variables by which a launcher says how many processes a run has, checked before anything relies on them.

A shell may have some of them left over from another program: with RANK=1 a single process would leave every message to a rank 0
that does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pretrain.system.errors import UserError

REMEDY = "start by torchrun or slurm/rank.sh, or unset RANK and WORLD_SIZE for a single process"


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes of the launcher; 1 without a launcher. Raises UserError for variables that contradict it."""
    given = {
        name: environment[name] for name in ("RANK", "WORLD_SIZE") if "RANK" in environment and name in environment
    }
    given |= {name: environment[name] for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in environment}
    for name, value in given.items():
        if not (value.isascii() and value.isdigit() and len(value) < 10) or (name.endswith("SIZE") and not int(value)):
            raise UserError(f"the environment has {name}={value!r}: {REMEDY}")
    if "RANK" not in given:
        return 1
    rank, size = int(given["RANK"]), int(given.get("WORLD_SIZE", 1))
    if rank >= size:
        raise UserError(
            f"the environment has RANK={rank} and WORLD_SIZE={given.get('WORLD_SIZE', 'not set')}: {REMEDY}"
        )
    if size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise UserError(f"the environment has WORLD_SIZE={size} and no {name}: {REMEDY}")
    return size
