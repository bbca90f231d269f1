"""Streaming writer of safetensors shards: one tensor in memory at a time.

The format (huggingface/safetensors): the header's length in 8 bytes, the header as JSON with each tensor's type, shape and
place, then the tensors' bytes without gaps. Files and index are named as transformers reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

SHARD_BYTES = 5 * 1000**3  # as transformers cuts them
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_shards(
    folder: Path,
    described: Sequence[tuple[str, Tensor]],
    tensors: Iterable[tuple[str, Tensor]],
    limit: int = SHARD_BYTES,
) -> list[str]:
    """Write model.safetensors, or shards of at most `limit` bytes and their index -> the files' names.

    described: name and meta tensor of all tensors, in the order in which `tensors` yields them. Raises ValueError when the
    two do not fit, OSError when the disk is full.
    """
    groups: list[list[tuple[str, Tensor]]] = [[]]
    for name, tensor in described:
        if groups[-1] and sum(_bytes(member) for _, member in groups[-1]) + _bytes(tensor) > limit:
            groups.append([])
        groups[-1].append((name, tensor))
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    stream = iter(tensors)
    for file_name, members in zip(names, groups):
        with open(folder / file_name, "wb") as file:
            file.write(_header(members))
            for name, shape in members:
                found, tensor = next(stream, ("nothing", shape))
                if (found, tensor.shape, tensor.dtype) != (name, shape.shape, shape.dtype):
                    raise ValueError(
                        f"{found} {list(tensor.shape)} came where {name} {list(shape.shape)} was announced"
                    )
                file.write(memoryview(cast(Any, tensor.contiguous().flatten().view(torch.uint8).numpy())))
                del tensor
    if len(groups) > 1:
        places = {name: file_name for file_name, members in zip(names, groups) for name, _ in members}
        total = sum(_bytes(tensor) for _, tensor in described)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _header(members: Sequence[tuple[str, Tensor]]) -> bytes:
    entries: dict = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in members:
        end = at + _bytes(tensor)
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
