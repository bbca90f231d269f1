"""Encoder record: the device and versions that encoded the images of a dataset, in job.json, every part and the
manifest; compared on resume.

On a CPU codes do not depend on threads, batches or order (`one_thread.py`). Another version of torch or Pillow, another
instruction set or a GPU rounds differently, and can change a code whose latent is on a boundary.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tokenization.parts import PartRecord

ROUNDING = ("device", "capability", "torch", "pillow")
"""What a code may depend on; on a GPU the number of pictures encoded at once, too."""


def encoder_record(device: torch.device, batch_size: int) -> dict[str, Any]:
    """Device, instruction set or compute capability, versions, and threads of this process, or its batch size on a
    GPU."""
    import PIL
    import torch

    versions = {"torch": str(torch.__version__), "pillow": PIL.__version__}
    if device.type == "cpu":
        capability = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        return {"device": "cpu", "capability": capability, **versions, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        name, level = torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device)))
        return {"device": name, "capability": level, **versions, "batch_size": batch_size}
    return {"device": str(device), "capability": "", **versions, "batch_size": batch_size}


def described(record: dict[str, Any]) -> str:
    """The record in words; an empty one is from a version that kept none."""
    if not record:
        return "an unrecorded processor"
    words = [f"{record['device']} ({record['capability']})", f"torch {record['torch']}", f"Pillow {record['pillow']}"]
    words += [
        f"{record[key]} {word}"
        for key, word in (("threads", "threads"), ("batch_size", "pictures at once"))
        if key in record
    ]
    return ", ".join(words)


def rounds_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records surely give the same codes: equal in ROUNDING, and in the batch size on a GPU."""
    return all(one.get(key) == other.get(key) for key in (*ROUNDING, "batch_size"))


def made_otherwise(before: PartRecord | None, now: PartRecord) -> str | None:
    """Warning for a part that was made again with other bytes; None if it is the same, or new."""
    if before is None or before.shards == now.shards:
        return None
    if rounds_alike(before.encoder, now.encoder):
        why = f"though {described(now.encoder)} made it both times"
    else:
        why = f"{described(before.encoder)} made it then, and {described(now.encoder)} now, which rounds otherwise"
    return (
        f"part {now.name} was made again and differs: {why}; the dataset has another fingerprint, "
        "and runs that began with the old one refuse it"
    )


def distinct(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Distinct records, in the order of their words."""
    return [dict(items) for items in sorted({tuple(sorted(record.items())) for record in records if record}, key=str)]
