"""Make a CUDA build of torchvision importable with a CPU build of torch.

mosaicml-streaming depends on torchvision, and torchmetrics and VLMEvalKit import it when it is installed; everything else
goes without it (`pretrain.system.light_imports`). PyPI's wheel is linked to libtorch_cuda, so on a CPU torch its C++ library does
not load, the operators that its Python part refers to are missing, and the import fails. Declaring the two operators is
enough for everything written in Python; the C++ ones (nms and its kin, which nothing here uses) stay unavailable and say
so when called.
"""

from __future__ import annotations

import importlib
import sys

_operators = None  # keeps the library object, and with it the declarations, alive


def ensure_torchvision() -> str:
    """Make `import torchvision` work. Returns "real" (C++ operators load), "python" (they do not) or "absent"."""
    global _operators
    if sys.modules.get("torchvision", ...) is None:  # calls left out so far
        del sys.modules["torchvision"]
    try:
        torchvision = importlib.import_module("torchvision")
    except ImportError:
        return "absent"
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision = importlib.import_module("torchvision")
    return "real" if torchvision.extension._has_ops() else "python"
