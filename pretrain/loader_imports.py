"""Imports for loader workers, made once in the process that they are forked from: this saves seconds per worker."""

from __future__ import annotations

import pretrain.loader  # noqa: F401
from pretrain.system.light_imports import mds_reader

mds_reader()
