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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pretrain.system.disk import tell
from pretrain.system.light_compiler import compiler_deferred

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


@contextmanager
def deferred(names: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Context in which modules with costly imports stay unloaded, with stand-ins for some of their names.

    names: by module the classes and functions that others import from it. A stand-in loads its module when it is called, or
    an attribute of it is asked for; `isinstance` is false as long as nobody loaded it, since there are no objects of it
    then. Any other name loads the module at once. Loaded modules are left alone, and after the context each module can be
    imported as always.
    """
    placed: dict[str, _DeferredModule] = {}
    for name, of_module in names.items():
        if name not in sys.modules:
            placed[name] = sys.modules[name] = _DeferredModule(name)
            for one in of_module:
                setattr(placed[name], one, _Later(one, (), {"module": SAME_AS.get(name, name)}))
    try:
        yield
    finally:
        for name, ours in placed.items():
            if sys.modules.get(name) is ours:
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                if parent in sys.modules and last not in vars(sys.modules[parent]):
                    setattr(sys.modules[parent], last, ours)  # for `import a.b` and then `a.b.c`


class _DeferredModule(types.ModuleType):
    """A module that is loaded when an attribute is asked for that was not set on it."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Later(type):
    """A stand-in for a class or a function of `module`, which loads the module when it is used."""

    module: str

    def _real(cls) -> Any:
        if isinstance(sys.modules.get(cls.module), _DeferredModule):
            del sys.modules[cls.module]
        return getattr(importlib.import_module(cls.module), cls.__name__)

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        return cls._real()(*args, **keywords)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, value: Any) -> bool:
        return cls._is_loaded() and isinstance(value, cls._real())

    def __subclasscheck__(cls, value: type) -> bool:
        return cls._is_loaded() and issubclass(value, cls._real())

    def _is_loaded(cls) -> bool:
        return not isinstance(sys.modules.get(cls.module), (_DeferredModule, type(None)))


class _LazyPackage(types.ModuleType):
    """A package whose submodules can be imported at once; its `__init__` runs when another attribute is asked for."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in FROM_MODULES.get(self.__name__, {}):
            return getattr(importlib.import_module(f"{self.__name__}.{FROM_MODULES[self.__name__][name]}"), name)
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


def import_megatron(unloadable: str, sharded: bool) -> None:
    """Import megatron-core without wandb and TensorBoard, which it imports for timers and an inference engine.

    It imports transformer-engine wherever that is installed, and ends where that does not load: then it is left out.
    unloadable: why it does not (`model.kernels.unloadable`), or "".
    sharded: with torch's sharded tensors and FSDP, which transformer-engine may ask for; without, half a second is saved.
    """
    if unloadable:
        for name in [name for name in sys.modules if name.split(".")[0] == TRANSFORMER_ENGINE]:
            del sys.modules[name]
        sys.modules[TRANSFORMER_ENGINE] = NOT_INSTALLED
        if os.environ.get("RANK", "0") == "0":
            tell(f"warning: transformer-engine is installed and does not load ({unloadable}): going on without it")
    with hidden("wandb", "torch.utils.tensorboard"):
        if sharded:
            import megatron.core
        else:
            import_torch_checkpoint()
            with deferred(SHARDED_IN_MEGATRON):
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


def import_torch_checkpoint() -> None:
    """Import torch's distributed checkpoints without what else they can hold: sharded tensors, which import sympy, FSDP's."""
    import torch.distributed

    lazy_packages("torch.distributed.checkpoint")
    with deferred(SHARDED_TENSORS):
        import torch.distributed.checkpoint.filesystem
        import torch.distributed.checkpoint.state_dict_saver  # noqa: F401


def import_transformers_configurations() -> None:
    """Import transformers' configuration classes, without sharded tensors, and with one listing of its models in
    place of two."""
    leave_torchvision_out()
    with hidden("boto3"), deferred(SHARDED_TENSORS):
        import transformers

        with _models_listed_once(transformers):
            import transformers.models.auto.configuration_auto  # noqa: F401


def import_transformers() -> None:
    """Import transformers' model classes without boto3, which accelerate imports for SageMaker, without torch's compiler
    and sharded tensors, and with one listing of its models in place of two."""
    leave_torchvision_out()
    with hidden("boto3"), deferred(HEAVY), compiler_deferred():
        import transformers

        with _models_listed_once(transformers):
            import transformers.generation.utils
            import transformers.modeling_utils  # noqa: F401


@contextmanager
def _models_listed_once(transformers: Any) -> Iterator[None]:
    """Context in which `transformers.models` takes the listing of all model files that `transformers` made.

    4.57 reads two thousand files for each of the two. Other releases, where the listing is found otherwise, make it again.
    """
    from transformers.utils import import_utils

    real = import_utils.define_import_structure
    package = os.path.join(os.path.dirname(transformers.__file__), "models")

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is None and os.path.dirname(module_path) == package:
            before = real.cache_info().misses
            listed = real(Path(package), prefix="models")  # as transformers calls it: its cache has it
            if real.cache_info().misses == before:
                return {
                    backends: {
                        name.removeprefix("models."): objects
                        for name, objects in modules.items()
                        if name.startswith("models.")
                    }
                    for backends, modules in listed.items()
                }
        return real(module_path, prefix)

    if hasattr(real, "cache_info"):
        import_utils.define_import_structure = define_import_structure
    try:
        yield
    finally:
        import_utils.define_import_structure = real


def vq_model() -> Any:
    """diffusers' VQModel without its other models and their imports: the compiler, transformers, peft, accelerate."""
    leave_torchvision_out()
    with hidden("torch._dynamo", "transformers", "peft", "accelerate"):
        import diffusers.models  # noqa: F401

        lazy_packages(*(f"diffusers.models.{name}" for name in ("autoencoders", "unets", "transformers")))
        from diffusers.models.autoencoders.vq_model import VQModel
    return VQModel


SAME_AS = {"torch.distributed._tensor": "torch.distributed.tensor"}
"""Former names of modules, by which nobody can tell whether the module is loaded."""
SHARDED_TENSORS = {
    "torch.distributed.tensor": ("DTensor", "Replicate", "_DTensorSpec", "distribute_tensor"),
    "torch.distributed.tensor._utils": ("compute_local_shape_and_global_offset",),
}
"""What transformers 4.57 and torch 2.13's checkpoints import of them, for uses that are none here."""
SHARDED_IN_MEGATRON = {
    **SHARDED_TENSORS,
    "torch.distributed.tensor": (*SHARDED_TENSORS["torch.distributed.tensor"], "Shard"),
    "torch.distributed.tensor.placement_types": ("Replicate", "Shard", "_StridedShard"),
    "torch.distributed._tensor": ("DTensor", "distribute_tensor"),
    "torch.distributed.fsdp": ("fully_shard",),
}
"""What megatron-core 0.16 and 0.19 import, for their FSDP and for models whose weights are such tensors."""
FROM_MODULES = {
    "torch.distributed.checkpoint": {
        "CheckpointException": "api",
        "DefaultLoadPlanner": "default_planner",
        "DefaultSavePlanner": "default_planner",
        "FileSystemReader": "filesystem",
        "FileSystemWriter": "filesystem",
        **dict.fromkeys(
            ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "TensorStorageMetadata"), "metadata"
        ),
        **dict.fromkeys(("LoadPlan", "LoadPlanner", "ReadItem", "SavePlan", "SavePlanner", "WriteItem"), "planner"),
        "StorageReader": "storage",
        "StorageWriter": "storage",
    },
}
"""By package, names that its `__init__` takes from its modules, and that others ask it for: megatron-core 0.19 does."""
HEAVY = {
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    **SHARDED_TENSORS,
    "transformers.integrations.tensor_parallel": (
        "_get_parameter_tp_plan",
        "distribute_model",
        "initialize_tensor_parallelism",
        "repack_weights",
        "replace_state_dict_local_with_dtensor",
        "shard_and_distribute_module",
        "verify_tp_plan",
    ),
}
"""With what transformers 4.57 imports of torch's compiler, and of a module of its own that makes sharded tensors."""
_FORMAT = "streaming.base.format"
MDS_PACKAGES = ("streaming", "streaming.base", _FORMAT, f"{_FORMAT}.base", f"{_FORMAT}.mds")
