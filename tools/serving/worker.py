"""The thread that owns the model: it takes jobs of a kind together, and tells each of them what comes of it."""

from __future__ import annotations

import io
import threading
import time
import traceback
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import LogitsProcessor, StoppingCriteria

from model.hf.sampling_uni_x import SeededSamplingLogitsProcessor
from tools.export_folder import Export
from tools.generation import continue_texts, draw_codes, generators, partial_pictures, stop_ids
from tools.serving.api_error import ApiError
from tools.serving.jobs import Event, Job, JobQueue, Usage
from tools.serving.text_stream import TextStream


class Abandoned(Exception):
    """Nobody waits for anything of a batch any more."""


class Worker(threading.Thread):
    """Makes what the queue holds until it is closed. `last_seconds` is what the last batch took."""

    def __init__(self, export: Export, queue: JobQueue, batch_size: int) -> None:
        super().__init__(name="model", daemon=True)
        self.export, self.queue, self.batch_size = export, queue, batch_size
        self.last_seconds = 0.0

    def run(self) -> None:
        while jobs := self.queue.take(self.batch_size):
            began = time.monotonic()
            try:
                (write if jobs[0].task == "text" else draw)(self.export, jobs)
            except Abandoned:
                pass
            except Exception:
                traceback.print_exc()
                for job in jobs:
                    job.emit(Event("error", ApiError(500, "the model failed; the server's log says how")))
            self.last_seconds = time.monotonic() - began


def draw(export: Export, jobs: Sequence[Job]) -> None:
    """Draw the pictures of jobs of one kind. Raises Abandoned when all of them are cancelled."""
    rows = [(job, number) for job in jobs for number in range(len(job.seeds))]
    grid = export.templates.grid
    codes_in_all = grid[0] * grid[1]
    prompts = {job: job.prompt(codes_of(export, job)) for job in jobs}
    moments = {job: partial_moments(job.partial, codes_in_all) for job in jobs}

    def on_codes(codes: torch.Tensor) -> None:
        if all(job.cancelled for job in jobs):
            raise Abandoned
        for row, (job, number) in enumerate(rows):
            if codes.shape[1] in moments[job] and not job.cancelled:
                picture = partial_pictures(export, codes[row : row + 1])[0]
                job.emit(Event("partial", png(picture), number, moments[job].index(codes.shape[1])))

    image_only = [prompts[job][1] for job, _ in rows] if jobs[0].task == "edit" else None
    seeds = [job.seeds[number] for job, number in rows]
    codes = draw_codes(export, [prompts[job][0] for job, _ in rows], seeds, jobs[0].sampling, image_only, on_codes)
    for (job, number), drawn in zip(rows, codes, strict=True):
        # One at a time, so that the pixels of a picture do not depend on its neighbours.
        job.emit(Event("picture", png(export.vq.decode(drawn.view(1, *grid))[0]), number))
    for job in jobs:
        made = codes_in_all * len(job.seeds)
        job.emit(Event("end", usage(export, prompts[job][0], made)))


def write(export: Export, jobs: Sequence[Job]) -> None:
    """Write the texts of jobs, each with settings of its own."""
    prompts = [job.prompt(codes_of(export, job))[0] for job in jobs]
    sampling = RowSampling(export, jobs)
    longest = max(job.sampling.max_new_tokens for job in jobs)
    continue_texts(export, prompts, longest, [sampling], [Follower(export, jobs, prompts)])


class RowSampling(LogitsProcessor):
    """The sampling of each row, with its own seed, temperature and top-p."""

    def __init__(self, export: Export, jobs: Sequence[Job]) -> None:
        self.rows = [
            SeededSamplingLogitsProcessor(
                generators(job.seeds),
                stop_ids(export),
                temperature=job.sampling.text_temperature,
                top_k=job.sampling.top_k,
                top_p=job.sampling.top_p,
            )
            for job in jobs
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [b, vocab] -> scores whose largest one in each row is at the token drawn."""
        pairs = zip(self.rows, input_ids.split(1), scores.split(1), strict=True)
        return torch.cat([row(ids, own) for row, ids, own in pairs])


class Follower(StoppingCriteria):
    """Sends each row's text as it grows, and ends it where its own limits say so."""

    def __init__(self, export: Export, jobs: Sequence[Job], prompts: Sequence[Sequence[int]]) -> None:
        self.export, self.jobs, self.prompts = export, jobs, prompts
        self.texts = [TextStream(export.decode, job.stop) for job in jobs]
        self.ended = [False] * len(jobs)
        self.stops = set(stop_ids(export))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options) -> torch.Tensor:
        """Ids so far [b, s] -> bool [b], whether each row has ended."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[row]:
                self.ended[row] = self.follow(row, token)
        return torch.tensor(self.ended, device=input_ids.device)

    def follow(self, row: int, token: int) -> bool:
        """Take in a row's next token -> whether it is its last."""
        job, text = self.jobs[row], self.texts[row]
        if job.cancelled:
            return True
        stopped = text.push(token) or token in self.stops
        if not stopped and len(text.ids) < job.sampling.max_new_tokens:
            if job.stream and (piece := text.take()):
                job.emit(Event("text", piece))
            return False
        if piece := text.finish():
            job.emit(Event("text", piece))
        reason = "stop" if stopped else "length"
        job.emit(Event("end", usage(self.export, self.prompts[row], len(text.ids), reason)))
        return True


def codes_of(export: Export, job: Job) -> list[torch.Tensor]:
    """Codes [rows * columns] of a job's pictures, one at a time, so that none depends on its neighbours."""
    return [export.vq.encode([picture])[0].flatten() for picture in job.pictures]


def partial_moments(partial: int, codes: int) -> list[int]:
    """After how many of a picture's codes it is shown: `partial` times in equal steps, if there are as many codes."""
    return sorted({codes * (number + 1) // (partial + 1) for number in range(partial)} - {0, codes})


def usage(export: Export, prompt: Sequence[int], made: int, reason: str = "stop") -> Usage:
    pictures = sum(map(export.vocabulary.is_code, prompt))
    return Usage(len(prompt), pictures, made, reason)


def png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
