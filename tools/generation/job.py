"""Resumable generation job: results of many requests, batch by batch, recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.shapes import size_word
from pretrain.system.errors import RunFailed
from pretrain.system.words import counted
from tools.generation.prompts import PICTURE_TASKS, Request, Sampling
from tools.generation.record import Record

if TYPE_CHECKING:
    from tools.export.folder import Export


def run_job(
    export: Export,
    task: str,
    requests: Sequence[Request],
    samples: int,
    sampling: Sampling,
    batch_size: int,
    preview: int,
    record: Record,
    numbers: Sequence[int] | None = None,
    extra: dict | None = None,
) -> None:
    """Generate `samples` results for every request, except recorded ones; then the contact sheet.

    `numbers` are the requests' own, on which seeds and names depend, where they are not 0, 1, 2 and so on. `extra` goes
    into every line: what else results depend on.
    """
    import torch
    from tqdm import tqdm

    from tools.generation.batches import fingerprint
    from tools.generation.prompts import check_lengths, check_memory, sample_seed, settings_of, shape_number
    from tools.generation.results import make_batch, say, write_sheets

    longest = check_lengths(export, task, requests, sampling)
    common = {"task": task, "model": fingerprint(export.folder), "settings": settings_of(task, sampling)}
    common |= extra or {}
    jobs, open_jobs = [], set()
    for number, request in zip(numbers or range(len(requests)), requests, strict=True):
        prompt = request.prompt or export.templates.image_to_text[0]
        for sample in range(samples):
            job = {**common, "prompt": prompt, "prompt_index": number, "sample_index": sample}
            job["sample_seed"] = sample_seed(sampling.seed, number, sample)
            if request.images:
                job["images"] = [str(path) for path in request.images]
            shape = shape_number(export, request.shape)
            if export.templates.shapes and task in PICTURE_TASKS:
                job["shape"] = "" if shape is None else size_word(export.templates.grids[shape])
            jobs.append((request, job))
            if not record.holds((number, sample), job):
                open_jobs.add((number, sample))
    if open_jobs and export.model.device.type == "cpu":
        check_memory(task, min(batch_size, len(jobs)), longest)
    unit = "picture" if task in PICTURE_TASKS else "text"
    with tqdm(total=len(jobs), initial=len(jobs) - len(open_jobs), unit=unit, desc=task, disable=None) as progress:
        for start in range(0, len(jobs), batch_size):
            batch = [
                (request, job)
                for request, job in jobs[start : start + batch_size]
                if (job["prompt_index"], job["sample_index"]) in open_jobs
            ]
            if batch:
                try:
                    made = make_batch(export, task, batch, sampling, record.folder, preview)
                except torch.OutOfMemoryError as error:
                    raise RunFailed(
                        f"the GPU has no room for {len(batch)} requests at a time ({str(error).splitlines()[0]}): lower "
                        f"--batch-size (prompts have up to {longest:,} tokens); the same command goes on from here"
                    ) from None
                record.add(made)
                for line in made:
                    say(line)
                progress.update(len(batch))
    bad = [line for line in record.lines.values() if "error" in line]
    if bad:
        was = "was" if len(bad) == 1 else "were"
        print(
            f"warning: {counted(len(bad), 'request')} {was} put aside, as {bad[0]['error']}: see {record.path}",
            file=sys.stderr,
        )
    if task in PICTURE_TASKS:
        write_sheets(record)
