"""Sharded checkpoints as tensor boxes that any layout can read: torch.distributed.checkpoint files, megatron-core's
torch_dist format.

Every rank writes one file; `.metadata` has the place of each box of each tensor. Reading needs no process group: a rank, or
a tool on a login node, reads the metadata and the boxes that it needs.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pretrain.system.light_imports import import_torch_checkpoint

import_torch_checkpoint()  # before the next ones
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from pretrain.system.disk import disk_error, writing
from pretrain.system.errors import UserError
from pretrain.tensor_boxes import TensorBox

FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class _SavePieces(DefaultSavePlanner):
    """Save planner of boxes; torch's own planner checks that they cover each tensor once."""

    def __init__(self, boxes: Sequence[TensorBox]):
        super().__init__(flatten_state_dict=False)
        self.boxes = {(piece.key, torch.Size(piece.offsets)): piece.tensor for piece in boxes}
        self.items = [
            WriteItem(
                index=MetadataIndex(piece.key, torch.Size(piece.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(piece.offsets), piece.tensor.shape),
                    properties=TensorProperties(dtype=piece.tensor.dtype),
                    size=torch.Size(piece.shape),
                ),
            )
            for piece in boxes
        ]

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self.items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        index = write_item.index
        return self.boxes[index.fqn, cast(torch.Size, index.offset)].detach().contiguous()


class _Writer(FileSystemWriter):
    """Reports a full disk by its own error, on the other processes too: torch's error names neither it nor the file."""

    def write_data(self, plan: SavePlan, planner):
        with writing(Path(self.path)):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results) -> None:
        with writing(Path(self.path)):
            super().finish(metadata, results)


def write_boxes(folder: Path, boxes: Sequence[TensorBox], group=None) -> None:
    """Write the boxes of all ranks of `group` (None: the default group, or this process alone) into `folder`.

    All ranks call it together. Raises OSError or RuntimeError on every rank when one of them could not write, or when the pieces do
    not cover each tensor exactly once.
    """
    writer = _Writer(folder, per_thread_copy_ahead=0)
    try:
        save({}, storage_writer=writer, planner=_SavePieces(boxes), process_group=group)
    except CheckpointException as error:  # a BaseException: it would pass every "except Exception"
        first = next(iter(error.failures.values()))[0]
        found = disk_error(first)
        if found:
            raise found from None
        raise RuntimeError(f"{folder}: {first.__class__.__name__}: {first}") from None


def write_format(folder: Path) -> None:
    """Write the two small files by which megatron-core's dist_checkpointing knows the format; one rank calls it."""
    with writing(folder), open(folder / "common.pt", "wb") as file:
        (folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")
        torch.save({}, file)


def write_whole(folder: Path, tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> None:
    """Write full tensors from one process, one in memory at a time: (name, function that makes it) pairs.

    Raises OSError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described, places = {}, {}
    file_name = "__0_0.distcp"
    with writing(folder), open(folder / file_name, "wb") as file:
        for name, make in tensors:
            tensor, at = make().detach().contiguous(), file.tell()
            torch.save(
                tensor
                if tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size()
                else tensor.clone(),
                file,
            )
            origin = torch.Size([0] * tensor.dim())
            chunk = ChunkStorageMetadata(origin, tensor.shape)
            described[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, [chunk])
            places[MetadataIndex(name, origin, 0)] = _StorageInfo(file_name, at, file.tell() - at)
            del tensor
    metadata = Metadata(dict(described), storage_data=places)
    with writing(folder):
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    write_format(folder)


class _Reader(FileSystemReader):
    """Reads the metadata without executing code of a foreign pickle."""

    def read_metadata(self, *_, **__) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if module.startswith("torch.distributed.checkpoint.") and name in _METADATA_CLASSES:
            return super().find_class(module, name)
        if (module, name) in {
            ("torch", "Size"),
            ("collections", "OrderedDict"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
        }:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in the metadata of a checkpoint")


_METADATA_CLASSES = {
    "Metadata",
    "MetadataIndex",
    "ChunkStorageMetadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "BytesStorageMetadata",
    "_MEM_FORMAT_ENCODING",
    "_StorageInfo",
    "StorageMeta",
}


def _open(folder: Path) -> tuple[_Reader, dict[str, TensorStorageMetadata]]:
    reader = _Reader(folder)
    try:
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        return reader, cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)  # nothing else is written
    except (OSError, ValueError, EOFError, AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder / '.metadata'}: cannot be read ({error}): take another checkpoint") from None


def stored_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape, dtype) of every tensor in `folder`. Raises UserError when there are none."""
    return {name: (tuple(stored.size), stored.properties.dtype) for name, stored in _open(folder)[1].items()}


class _Into:
    """Load planner that gives torch's reader the tensors to fill."""

    def __init__(self, boxes: Sequence[TensorBox]):
        self.boxes = boxes

    def resolve_tensor(self, item) -> Tensor:
        tensor = self.boxes[item.dest_index.index].tensor
        for dim, (start, length) in enumerate(zip(item.dest_offsets, item.lengths)):
            tensor = tensor.narrow(dim, start, length)
        return tensor

    def commit_tensor(self, item, tensor: Tensor) -> None:
        """No-op: boxes are views."""


def read_boxes(folder: Path, boxes: Sequence[TensorBox]) -> None:
    """Fill the boxes' tensors from `folder`, written by any layout. Each rank reads for itself.

    Raises UserError when a tensor is absent or of another shape.
    """
    reader, stored = _open(folder)
    items = []
    for number, piece in enumerate(boxes):
        found = stored.get(piece.key)
        if found is None or tuple(found.size) != piece.shape:
            there = "absent" if found is None else f"{list(found.size)}"
            raise UserError(f"{folder}: {piece.key} is {there}, {list(piece.shape)} is wanted: it is of another model")
        box = ChunkStorageMetadata(torch.Size(piece.offsets), piece.tensor.shape)
        wanted = create_read_items_for_chunk_list(piece.key, found, [box])
        if sum(math.prod(item.lengths) for item in wanted) != piece.tensor.numel():
            raise UserError(f"{folder}: {piece.key} has holes: take another checkpoint")
        items += [replace(item, dest_index=replace(item.dest_index, index=number)) for item in wanted]
    with torch.no_grad():
        reader.read_data(LoadPlan(items), cast(LoadPlanner, _Into(boxes)))  # required methods of a planner


def read_whole(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor on the CPU) of each name, one in memory at a time. Raises UserError."""
    reader, stored = _open(folder)
    for name in names:
        found = stored.get(name)
        if found is None:
            raise UserError(f"{folder}: holds no {name}: it is of another model")
        yield name, _whole(reader, name, found)


def _whole(reader: _Reader, name: str, found: TensorStorageMetadata) -> Tensor:
    places = collections.defaultdict(list)
    for number, chunk in enumerate(found.chunks):
        place = reader.storage_data[MetadataIndex(name, chunk.offsets, number)]
        places[place.relative_path].append((place, chunk))
    whole = None
    for file_name, members in sorted(places.items()):
        with open(Path(reader.path) / file_name, "rb") as file:
            for place, chunk in members:
                part = torch.load(reader._slice_file(file, place), map_location="cpu", weights_only=True)
                if part.shape == found.size:
                    return part  # without a second copy
                whole = torch.empty(found.size, dtype=found.properties.dtype) if whole is None else whole
                target = whole
                for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes)):
                    target = target.narrow(dim, start, length)
                target.copy_(part)
    if whole is None:
        raise UserError(f"{reader.path}: {name} has no chunk: take another checkpoint")
    return whole
