"""job.json: the plan of an output folder, from the settings and the listing of the input alone.

Every worker computes it and gets the same, so a rerun continues the same job or refuses. The assignment of files to workers
follows from it (`worker_plan.py`). Workers, batch size and device are not part of it: on a CPU the codes do not depend on
them, and on a GPU only for a latent on the boundary between two codebook entries. The first worker records the encoder, and
the others compare it (`encoder_record.py`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.shapes import Framing, recorded, size_word
from pretrain.system.errors import UserError
from tokenization.encoder_record import encoder_record
from tokenization.files import is_temporary, write_atomically
from tokenization.filters import Filters
from tokenization.manifest import JOB
from tokenization.readers import Corpus
from tokenization.text_tokenizer import TextTokenizer
from tokenization.vq_base import VQ

FORMAT_VERSION = 2


def describe_job(
    corpora: list[Corpus],
    vq: VQ,
    tokenizer: TextTokenizer,
    framing: Framing | int,
    samples_per_part: int,
    filters: Filters | None = None,
    batch_size: int = 32,
    draft: bool = False,
) -> dict[str, Any]:
    """Content of job.json. `framing`: the image shapes, or the side of squares in pixels; `draft` as in
    `Preparation`."""
    if isinstance(framing, int):
        shapes: dict[str, Any] = {"image_size": framing}
    else:
        shapes = {"image_size": framing.grids[0][0] * framing.downsample, **recorded(framing)}
    return {
        "format_version": FORMAT_VERSION,
        "samples_per_part": samples_per_part,
        "filters": asdict(filters or Filters()),
        "vq": {
            "name": vq.name,
            "fingerprint": vq.fingerprint,
            "codebook_size": vq.codebook_size,
            "downsample": vq.downsample,
            **shapes,
            **({"draft": True} if draft else {}),
        },
        "encoder": encoder_record(vq.device, batch_size),
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        },
        "inputs": [
            {
                "source": corpus.source,
                "kind": corpus.kind,
                "files": [{"name": file.name, "bytes": file.size} for file in corpus.files],
            }
            for corpus in corpora
        ],
    }


def start_or_continue(output: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Record the job in an empty output folder, or check that the recorded one is the same -> the recorded job.

    Raises UserError if the folder belongs to something else, or to a job that differs in what the codes depend on.
    """
    path = output / JOB
    if not path.exists():
        foreign = [entry.name for entry in output.iterdir() if not is_temporary(entry)]
        if foreign and not path.exists():  # another worker may have just started
            raise UserError(
                f"{output}: the folder is not empty and was not made by this command (it holds {foreign[0]}); "
                "pass --output a new or an empty folder"
            )
    if not path.exists():
        write_atomically(path, (json.dumps(job, indent=1) + "\n").encode())
        return job
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        change = first_change(recorded, job)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {output} and start again") from error
    if change:
        raise UserError(
            f"{output}: it was started with {change}; start again as then to continue it, or pass --output a new folder"
        )
    return recorded


def first_change(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """First difference between two jobs that changes the output, in words; None if there is none."""
    for label, section, key in (
        ("format version", None, "format_version"),
        ("--samples-per-part", None, "samples_per_part"),
        ("--image-size", "vq", "image_size"),
        ("a VQ model of fingerprint", "vq", "fingerprint"),
        ("a tokenizer.json of SHA-256", "tokenizer", "sha256"),
    ):
        old, new = (job[section][key] if section else job[key] for job in (then, now))
        if old != new:
            return f"{label} {str(old)[:12]}, and now it is {str(new)[:12]}"
    names = [[entry["source"] for entry in job["inputs"]] for job in (then, now)]
    if names[0] != names[1]:
        return f"the inputs {', '.join(names[0])}, and now they are {', '.join(names[1])}"
    for key, usual in (("shapes", []), ("fit", "crop")):
        old, new = (job["vq"].get(key, usual) for job in (then, now))
        if old != new:
            old, new = (
                ", ".join(map(size_word, value)) or "square" if key == "shapes" else value for value in (old, new)
            )
            return f"--{key} {old}, and now it is {new}"
    if (drafted := then["vq"].get("draft", False)) != now["vq"].get("draft", False):
        return f"{'' if drafted else 'no '}--draft, and now it is with{'out' if drafted else ''} it"
    for name, old in then["filters"].items():
        if now["filters"][name] != old:
            return f"--{name.replace('_', '-')} {old}, and now it is {now['filters'][name]}"
    for old, new in zip(then["inputs"], now["inputs"], strict=True):
        listed = [{file["name"]: file for file in entry["files"]} for entry in (old, new)]
        for name in sorted(listed[0].keys() | listed[1].keys()):
            if name not in listed[1]:
                return f"{name} in input {old['source']!r}, which is gone now"
            if name not in listed[0]:
                return f"no {name} in input {old['source']!r}, which is there now"
            if listed[0][name] != listed[1][name]:
                sizes = [files[name]["bytes"] for files in listed]
                return f"{name} of {sizes[0]:,} bytes in input {old['source']!r}, and now it has {sizes[1]:,}"
        if old["kind"] != new["kind"]:
            return f"input {old['source']!r} as {old['kind']}, and now it is {new['kind']}"
    return None


@contextmanager
def locked(folder: Path, alone: bool, wait: bool = False) -> Iterator[None]:
    """Lock the folder for this process, exclusively or shared with other workers of its job. Raises UserError if that
    is not possible at once.

    The lock goes with the process, however it ends. On a file system without locks this does nothing; two processes
    that do the same work are no danger then, only a waste.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise UserError(f"{folder}: another process is writing to it; wait for it, or stop it") from error
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise
        yield
    finally:
        os.close(descriptor)
