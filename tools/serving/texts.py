"""Shared by the text endpoints: their job, their limits, and collecting an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request

from model.prompts import TURN_END
from tools.generation.prompts import sample_seed
from tools.serving.api_error import ApiError
from tools.serving.jobs import Job, Usage
from tools.serving.service import Service, draw_seed


@dataclass(frozen=True)
class TextSettings:
    """Text settings of a request in the OpenAI API's names; None where a request leaves one out."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    n: int | None = None

    @classmethod
    def of(cls, asked: Any, **more: Any) -> TextSettings:
        """Settings from the fields of these names."""
        return cls(**{name: getattr(asked, name, None) for name in cls.__dataclass_fields__} | more)


async def text_job(
    service: Service, prompt: Callable, files: Sequence[bytes], settings: TextSettings, param: str, limit_name: str
) -> tuple[Job, int]:
    """Job of a text request, and its seed. Raises ApiError 400, which names `param` or `limit_name`."""
    service.check_count(settings.n)
    pictures = await service.squares(files, param)
    seed = draw_seed(settings.seed)
    stop = [settings.stop] if isinstance(settings.stop, str) else list(settings.stop or [])
    if service.turns and len(service.export.markup(TURN_END)) > 1:
        stop.append(TURN_END)  # a tokenizer without this token encodes its characters
    temperature = 1.0 if settings.temperature is None else settings.temperature
    sampling = replace(
        service.defaults, text_temperature=temperature, top_k=settings.top_k or 0, top_p=settings.top_p or 1.0
    )
    seeds = [sample_seed(seed, 0, sample) for sample in range(settings.n or 1)]
    job = Job("text", prompt, pictures, seeds, sampling, stop, bool(settings.stream))
    wanted, limit = settings.max_tokens, service.limits.max_tokens
    if wanted and wanted > limit:
        raise ApiError(400, f"{limit_name} is {wanted}, the limit is {limit}", limit_name, "invalid_value")
    room = service.room(job, param)
    if wanted and wanted > room:
        message = f"{limit_name} is {wanted}, and the model has room for {room} after this prompt"
        raise ApiError(400, message, limit_name, "context_length_exceeded")
    job.sampling = replace(sampling, max_new_tokens=min(limit, room) if wanted is None else wanted)
    return job, seed


@dataclass
class Answers:
    """Texts of a job, one for each seed, why each ended, and its tokens."""

    texts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    judged: list[list] = field(default_factory=list)  # of Judged tokens, where they were asked for
    usage: Usage | None = None


async def collect(service: Service, request: Request, job: Job) -> Answers:
    """Wait for all texts of a job."""
    found = Answers([""] * len(job.seeds), ["stop"] * len(job.seeds), [[]] * len(job.seeds))
    async for event in service.events(request, job):
        if event.kind == "text":
            found.texts[event.row] += event.value
        elif event.kind == "stopped":
            found.reasons[event.row] = event.value
        elif event.kind == "judged":
            found.judged[event.row] = event.value
        elif event.kind == "end":
            found.usage = event.value
    return found


def usage_of(usage: Usage) -> dict:
    """Token usage of a text in the OpenAI API's format."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.made,
        "total_tokens": usage.prompt + usage.made,
    }
