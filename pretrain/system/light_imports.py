"""Lazy imports of heavy libraries and of what they import in turn: saves seconds per start, and irrelevant warnings.

Two ways. `hidden` makes optional dependencies look missing: megatron-core imports wandb, and PyTorch's TensorBoard writer
boto3, in any case. `lazy_packages` defers a package's `__init__`, which imports all of the package where one module is
needed: of mosaicml-streaming the shard format, of diffusers one model.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pretrain.system.disk import tell

TRANSFORMER_ENGINE = "transformer_engine"
NOT_INSTALLED = cast(types.ModuleType, None)  # in sys.modules: importing this one fails


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Context in which these modules cannot be imported, as if not installed. Imported ones stay."""
    gone = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(gone, NOT_INSTALLED))
    try:
        yield
    finally:
        for name in gone:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


class _LazyPackage(types.ModuleType):
    """A package whose submodules can be imported at once; its `__init__` runs when another attribute is asked for."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        module = f"{self.__name__}.{name}"
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
        package: Any = self
        package.__class__ = types.ModuleType
        package.__spec__.loader.exec_module(package)
        return getattr(self, name)


def lazy_packages(*names: str) -> None:
    """Defer the `__init__` of these packages, parents first. Imported and missing packages are left alone."""
    for name in names:
        parent, _, last = name.rpartition(".")
        if name in sys.modules or (parent and parent not in sys.modules):
            continue
        spec = importlib.machinery.PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
        if spec is None or spec.submodule_search_locations is None:
            continue
        package = _LazyPackage(name)
        package.__spec__, package.__path__ = spec, spec.submodule_search_locations
        package.__file__, package.__package__, package.__loader__ = spec.origin, name, spec.loader
        sys.modules[name] = package
        if parent:
            setattr(sys.modules[parent], last, package)


def leave_torchvision_out() -> None:
    """Block torchvision: nothing here uses it, but mosaicml-streaming requires it, and transformers imports it where it
    is installed.

    It imports torch's compiler, and PyPI's wheel, which is linked to CUDA, fails with a CPU build of torch. For the whole
    process it is then as where it is not installed.
    """
    sys.modules.setdefault("torchvision", NOT_INSTALLED)


def import_megatron(unloadable: str) -> None:
    """Import megatron-core without wandb and TensorBoard, which it imports for timers and an inference engine.

    It imports transformer-engine wherever that is installed, and ends where that does not load: then it is left out.
    unloadable: why it does not (`model.kernels.unloadable`), or "".
    """
    if unloadable:
        for name in [name for name in sys.modules if name.split(".")[0] == TRANSFORMER_ENGINE]:
            del sys.modules[name]
        sys.modules[TRANSFORMER_ENGINE] = NOT_INSTALLED
        if os.environ.get("RANK", "0") == "0":
            tell(f"warning: transformer-engine is installed and does not load ({unloadable}): going on without it")
    with hidden("wandb", "torch.utils.tensorboard"):
        import megatron.core  # noqa: F401


def summary_writer() -> type:
    """TensorBoard's SummaryWriter without boto3: events are written to a local folder."""
    with hidden("boto3"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def tensorboard_records() -> tuple[Any, Any, Any, Any]:
    """TensorBoard's Event, SessionLog and Summary, and its RecordWriter, without boto3."""
    with hidden("boto3", "botocore"):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    return Event, SessionLog, Summary, RecordWriter


def mds_reader() -> Any:
    """mosaicml-streaming's MDSReader without its datasets, which import torchvision and cloud clients."""
    leave_torchvision_out()
    lazy_packages(*MDS_PACKAGES)
    from streaming.base.format.mds.reader import MDSReader

    return MDSReader


def mds_writer() -> type:
    """mosaicml-streaming's MDSWriter, likewise."""
    leave_torchvision_out()
    lazy_packages(*MDS_PACKAGES)
    from streaming.base.format.mds.writer import MDSWriter

    return MDSWriter


def import_transformers() -> None:
    """Import transformers' model classes without boto3, which accelerate imports for SageMaker."""
    leave_torchvision_out()
    with hidden("boto3"):
        import transformers.modeling_utils  # noqa: F401


def vq_model() -> Any:
    """diffusers' VQModel without its other models and their imports: the compiler, transformers, peft, accelerate."""
    leave_torchvision_out()
    with hidden("torch._dynamo", "transformers", "peft", "accelerate"):
        import diffusers.models  # noqa: F401

        lazy_packages(*(f"diffusers.models.{name}" for name in ("autoencoders", "unets", "transformers")))
        from diffusers.models.autoencoders.vq_model import VQModel
    return VQModel


_FORMAT = "streaming.base.format"
MDS_PACKAGES = ("streaming", "streaming.base", _FORMAT, f"{_FORMAT}.base", f"{_FORMAT}.mds")
