"""What loader workers need, imported once by the process that they are forked from: seconds for each worker otherwise."""

from __future__ import annotations

from model.torchvision_compat import ensure_torchvision

ensure_torchvision()

import streaming.base.format.mds.reader  # noqa: E402, F401

import pretrain.loader  # noqa: E402, F401
