"""What loader workers need, imported once by the process that they are forked from: seconds for each worker otherwise."""

from __future__ import annotations

import pretrain.loader  # noqa: F401
from pretrain.system.light_imports import mds_reader

mds_reader()
