"""Worker thread that owns the model: it batches jobs of a kind and sends their events."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from transformers import LogitsProcessor, StoppingCriteria

from model.hf.sampling_uni_x import SeededSamplingLogitsProcessor
from tools.export.folder import Export
from tools.generation.batches import continue_texts, draw_codes, generators, partial_picture, stop_ids
from tools.generation.prompts import source_codes
from tools.serving.api_error import ApiError
from tools.serving.jobs import Event, Job, JobQueue, Usage
from tools.serving.likelihood import judge
from tools.serving.metrics import ServerMetrics
from tools.serving.text_stream import TextStream

PATIENCE, LONGEST = 0.1, 0.1  # batching delay: share of the last batch's time, and seconds


class Abandoned(Exception):
    """All jobs of a batch are cancelled."""


class Worker(threading.Thread):
    """Processes the queue until it is closed. `last_seconds`: duration of the last batch."""

    def __init__(self, export: Export, queue: JobQueue, batch_size: int, metrics: ServerMetrics) -> None:
        super().__init__(name="model", daemon=True)
        self.export, self.queue, self.batch_size, self.metrics = export, queue, batch_size, metrics
        self.last_seconds = 0.0

    def run(self) -> None:
        while jobs := self.queue.take(self.batch_size, min(PATIENCE * self.last_seconds, LONGEST)):
            began, results = time.monotonic(), sum(len(job.seeds) for job in jobs)
            try:
                made = (write if jobs[0].task == "text" else draw)(self.export, jobs)
                self.metrics.batch(jobs[0].task, results, made, time.monotonic() - began)
            except Abandoned:
                pass
            except Exception:
                traceback.print_exc()
                for job in jobs:
                    job.emit(Event("error", ApiError(500, "the model failed; the server's log says how")))
            self.last_seconds = time.monotonic() - began


def draw(export: Export, jobs: Sequence[Job]) -> int:
    """Generate the images of jobs of one kind -> number of codes. Raises Abandoned when all are cancelled."""
    rows = [(job, number) for job in jobs for number in range(len(job.seeds))]
    prompts = {job: job.prompt(codes_of(export, job)) for job in jobs}

    def on_codes(codes: torch.Tensor, grids: Sequence[tuple[int, int]]) -> None:
        if all(job.cancelled for job in jobs):
            raise Abandoned
        for (job, number), drawn, grid in zip(rows, codes, grids, strict=True):
            moments = partial_moments(job.partial, grid[0] * grid[1])
            if len(drawn) in moments and not job.cancelled:
                job.emit(Event("partial", partial_picture(export, drawn, grid), number, moments.index(len(drawn))))

    image_only = [prompts[job][1] or [] for job, _ in rows] if jobs[0].task == "edit" else None
    seeds = [job.seeds[number] for job, number in rows]
    shapes = [job.shape for job, _ in rows]
    codes = draw_codes(
        export, [prompts[job][0] for job, _ in rows], seeds, jobs[0].sampling, image_only, on_codes, shapes
    )
    made = dict.fromkeys(jobs, 0)
    for (job, number), drawn, picture in zip(rows, codes, decoded(export, codes), strict=True):
        job.emit(Event("picture", picture, number))
        made[job] += drawn.numel()
    for job in jobs:
        job.emit(Event("end", usage(export, prompts[job][0], made[job])))
    return sum(made.values())


def decoded(export: Export, codes: Sequence[torch.Tensor]) -> list[Image.Image]:
    """Images of codes [rows, columns] each, decoded one at a time, independent of the batch.

    On a CPU each is decoded by a thread of its own; a GPU would choose its kernels by the size of the batch.
    """
    alike = len({one.shape for one in codes}) == 1
    groups = [torch.stack(list(codes))] if alike and codes[0].device.type == "cpu" else [one[None] for one in codes]
    return [picture for group in groups for picture in export.vq.decode(group)]


def write(export: Export, jobs: Sequence[Job]) -> int:
    """Generate the texts of jobs, each with its own settings -> number of tokens."""
    prompts = {job: job.prompt(codes_of(export, job))[0] for job in jobs}
    going = [job for job in jobs if job.sampling.max_new_tokens]
    rows = [(job, number) for job in going for number in range(len(job.seeds))]
    follower = Follower(export, rows, prompts)
    if going:
        longest = max(job.sampling.max_new_tokens for job in going)
        continue_texts(export, [prompts[job] for job, _ in rows], longest, [RowSampling(export, rows)], [follower])
    for job in jobs:
        if job.cancelled or (job.logprobs is None and job in going):
            continue
        texts = [follower.texts[place].ids for place, (other, _) in enumerate(rows) if other is job]
        for number, ids in enumerate(texts or [[]] * len(job.seeds)):
            if not texts:
                job.emit(Event("stopped", "length", number))
            if job.logprobs is not None:
                first = 0 if job.echo else len(prompts[job])
                judged = judge(export.model, [*prompts[job], *ids], first, job.logprobs)
                job.emit(Event("judged", judged, number))
        job.emit(Event("end", usage(export, prompts[job], sum(map(len, texts)))))
    return sum(len(text.ids) for text in follower.texts)


class RowSampling(LogitsProcessor):
    """Sampling per row, with its own seed, temperature, top-k and top-p."""

    def __init__(self, export: Export, rows: Sequence[tuple[Job, int]]) -> None:
        self.rows = [
            SeededSamplingLogitsProcessor(
                generators([job.seeds[number]]),
                stop_ids(export),
                temperature=job.sampling.text_temperature,
                top_k=job.sampling.top_k,
                top_p=job.sampling.top_p,
            )
            for job, number in rows
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [b, vocab] -> scores whose largest one in each row is at the sampled token."""
        pairs = zip(self.rows, input_ids.split(1), scores.split(1), strict=True)
        return torch.cat([row(ids, own) for row, ids, own in pairs])


class Follower(StoppingCriteria):
    """Stopping criterion that streams each row's text and applies its own limits."""

    def __init__(self, export: Export, rows: Sequence[tuple[Job, int]], prompts: Mapping[Job, Sequence[int]]) -> None:
        self.export, self.rows, self.prompts = export, rows, prompts
        self.texts = [TextStream(export.decode, job.stop, job.raw) for job, _ in rows]
        self.ended = [False] * len(rows)
        self.stops = set(stop_ids(export))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options) -> torch.Tensor:
        """Ids so far [b, s] -> bool [b], whether each row has ended."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[row]:
                self.ended[row] = self.follow(row, token)
        return torch.tensor(self.ended, device=input_ids.device)

    def follow(self, row: int, token: int) -> bool:
        """Add a row's next token -> whether it is its last."""
        (job, number), text = self.rows[row], self.texts[row]
        if job.cancelled:
            return True
        stopped = text.push(token) or token in self.stops
        if not stopped and len(text.ids) < job.sampling.max_new_tokens:
            if job.stream and (piece := text.take()):
                job.emit(Event("text", piece, number))
            return False
        if piece := text.finish():
            job.emit(Event("text", piece, number))
        job.emit(Event("stopped", "stop" if stopped else "length", number))
        self.ended[row] = True
        own = [place for place, (other, _) in enumerate(self.rows) if other is job]
        if job.logprobs is None and all(self.ended[place] for place in own):
            made = sum(len(self.texts[place].ids) for place in own)
            job.emit(Event("end", usage(self.export, self.prompts[job], made)))
        return True


def codes_of(export: Export, job: Job) -> list[torch.Tensor]:
    """Codes of a job's images, encoded one at a time, independent of the batch."""
    return [source_codes(export, picture) for picture in job.pictures]


def partial_moments(partial: int, codes: int) -> list[int]:
    """Code counts at which previews of an image are sent: `partial` times in equal steps, if there are as many
    codes."""
    return sorted({codes * (number + 1) // (partial + 1) for number in range(partial)} - {0, codes})


def usage(export: Export, prompt: Sequence[int], made: int) -> Usage:
    """Token usage of a job: its prompt, the image tokens in it, and `made` new tokens."""
    return Usage(len(prompt), sum(map(export.vocabulary.is_code, prompt)), made)
