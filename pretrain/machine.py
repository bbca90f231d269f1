"""Hardware and library versions of a run, as far as its numerics depend on them: processors, threads, GPUs,
libraries."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("torch", "megatron-core", "deepspeed", "transformer-engine", "apex", "flash-attn", "numpy")
COMPARED = ("processor", "capability", "limited", "threads", "gpus", "driver", "cuda", "cudnn", "nccl", "libraries")


def describe() -> dict:
    """Processor and instruction set as torch uses them, threads, GPU and driver, versions of this process."""
    import torch

    found = {
        "processor": _line("/proc/cpuinfo", r"model name\s*: (.*)") or os.uname().machine,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))}
        | {"torch": torch.__version__},
    }
    limited = {name: os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if name in os.environ}
    if limited:
        found["limited"] = limited
    if torch.cuda.is_available():
        found |= {
            "gpus": torch.cuda.get_device_name(),
            "driver": _line("/proc/driver/nvidia/version", r"Kernel Module(?: for \S+)?\s+([\d.]+)") or "unknown",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        }
    return found


PEAKS = (  # TFLOP/s of dense bf16 products by NVIDIA's data sheets; the first name that a device's holds
    ("B200", 2250.0),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.4),
    ("H800", 989.4),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.2),
)


def device_name() -> str:
    """torch's name of this process's GPU; "" without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def peak_tflops(device: str) -> float | None:
    """Peak TFLOP/s of a GPU by torch's name for it, as "NVIDIA H100 80GB HBM3"; None for one that is not known."""
    return next((peak for name, peak in PEAKS if name in device), None)


def peak_memory() -> int:
    """Peak memory of this process in bytes: of its GPU by torch's allocator, else resident main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def grouped(machines: Sequence[dict]) -> list[dict]:
    """Descriptions of all ranks, equal ones merged, with their ranks."""
    groups: list[dict] = []
    for rank, machine in enumerate(machines):
        same = next((group for group in groups if {**group, "ranks": None} == {**machine, "ranks": None}), None)
        if same is None:
            groups.append({**machine, "ranks": [rank]})
        else:
            same["ranks"].append(rank)
    return groups


def what_changed(before: dict, now: dict) -> str:
    """Differences between the machines of two lines of starts.jsonl, in words; "" for none, or when it is not known."""
    try:
        return _what_changed(before, now) if "machines" in before else ""
    except (KeyError, TypeError, AttributeError):  # a line that somebody edited
        return ""


def _what_changed(before: dict, now: dict) -> str:
    changes = []
    if before["processes"] != now["processes"]:
        changes.append(f"processes {before['processes']}, now {now['processes']}")
    for key in COMPARED:
        old, new = ([machine.get(key) for machine in start["machines"]] for start in (before, now))
        if key == "libraries":
            names = sorted({name for versions in (*old, *new) for name in versions or ()})
            pairs = [
                (name, *([(versions or {}).get(name) for versions in side] for side in (old, new))) for name in names
            ]
        else:
            pairs = [(key, old, new)]
        changes += [f"{name} {_words(a)}, now {_words(b)}" for name, a, b in pairs if _words(a) != _words(b)]
    return "; ".join(changes)


def _words(values: Sequence) -> str:
    return " and ".join(sorted({"none" if value is None else str(value) for value in values}))


def _line(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
