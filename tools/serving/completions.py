"""POST /v1/completions: text completion, and log probabilities for evaluation harnesses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from tools.serving.api_error import ApiError, json_response
from tools.serving.jobs import Job, Usage
from tools.serving.likelihood import in_words
from tools.serving.schemas.completions import CompletionRequest
from tools.serving.schemas.fields import parse_json
from tools.serving.service import Service, event_stream
from tools.serving.texts import Answers, TextSettings, collect, text_job, usage_of

TOKENS = 16  # default, as in the OpenAI API


def completions_endpoint(service: Service) -> Callable:
    """Endpoint of one service."""

    async def completions(request: Request) -> Response:
        asked = parse_json(CompletionRequest, await request.body())
        service.check_model(asked.model)
        prompts = prompts_of(service, asked)
        check_stream(asked, prompts)
        jobs = [await job_of(service, asked, ids) for ids in prompts]
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        head |= {"model": service.name, "seed": jobs[0][1]}
        if asked.stream:
            return event_stream(chunks(service, request, jobs[0][0], asked, prompts[0], head))
        found = await asyncio.gather(*(collect(service, request, job) for job, _ in jobs))
        choices = [
            {"index": number, **choice}
            for number, choice in enumerate(
                choice
                for ids, answers in zip(prompts, found, strict=True)
                for choice in choices_of(service, asked, ids, answers)
            )
        ]
        used = [cast(Usage, answers.usage) for answers in found]  # all have ended
        usage = Usage(sum(one.prompt for one in used), 0, sum(one.made for one in used))
        return json_response({**head, "choices": choices, "usage": usage_of(usage)})

    return completions


def prompts_of(service: Service, asked: CompletionRequest) -> list[list[int]]:
    """Ids of each prompt. Raises ApiError 400."""
    given: list[Any] = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    if isinstance(given[0], int):
        given = [given]
    if len(given) > service.limits.prompts:
        message = f"prompt: {len(given)} prompts, the limit is {service.limits.prompts}"
        raise ApiError(400, message, "prompt", "invalid_value")
    service.check_words([one for one in given if isinstance(one, str)], "prompt")
    size, prompts = service.export.model.config.vocab_size, []
    for one in given:
        ids = [int(token) for token in service.export.encode(one)] if isinstance(one, str) else list(one)
        if not ids:
            raise ApiError(400, "prompt: give some text", "prompt", "invalid_value")
        if max(ids) >= size:
            message = f"prompt: token {max(ids)} is not one of the model's {size:,}"
            raise ApiError(400, message, "prompt", "invalid_value")
        prompts.append(ids)
    return prompts


def check_stream(asked: CompletionRequest, prompts: Sequence) -> None:
    """Raises ApiError 400 for combinations that cannot be streamed."""
    if asked.stream and len(prompts) > 1:
        raise ApiError(400, "stream is for one prompt: send several requests", "stream", "invalid_value")
    if asked.stream and asked.logprobs is not None:
        message = "logprobs are known when a text is whole: leave out stream"
        raise ApiError(400, message, "logprobs", "invalid_value")
    if asked.max_tokens == 0 and not asked.echo:
        raise ApiError(400, "max_tokens is 0: nothing would come back but with echo", "max_tokens", "invalid_value")


async def job_of(service: Service, asked: CompletionRequest, ids: list[int]) -> tuple[Job, int]:
    wanted = TOKENS if asked.max_tokens is None else asked.max_tokens
    settings = TextSettings.of(asked, max_tokens=wanted)
    job, seed = await text_job(service, lambda codes: (ids, None), [], settings, "prompt", "max_tokens")
    job.raw, job.logprobs, job.echo = True, asked.logprobs, bool(asked.echo)
    return job, seed


def choices_of(service: Service, asked: CompletionRequest, ids: list[int], found: Answers) -> list[dict]:
    """A prompt's answers in the OpenAI API's format."""
    decode, choices = service.export.decode, []
    before = decode(ids) if asked.echo else ""
    for row, (text, reason) in enumerate(zip(found.texts, found.reasons, strict=True)):
        start = 0 if asked.echo else len(decode(ids))
        logprobs = None if asked.logprobs is None else in_words(found.judged[row], decode, start)
        choices.append({"text": before + text, "logprobs": logprobs, "finish_reason": reason})
    return choices


async def chunks(
    service: Service, request: Request, job: Job, asked: CompletionRequest, ids: list[int], head: dict
) -> AsyncIterator[dict]:
    """Server-sent events of a streamed text in the OpenAI API's format."""

    def chunk(row: int, text: str, reason: str | None = None) -> dict:
        return {**head, "choices": [{"index": row, "text": text, "logprobs": None, "finish_reason": reason}]}

    if asked.echo:
        for row in range(len(job.seeds)):
            yield chunk(row, service.export.decode(ids))
    async for event in service.events(request, job):
        if event.kind == "text":
            yield chunk(event.row, event.value)
        elif event.kind == "stopped":
            yield chunk(event.row, "", event.value)
        elif event.kind == "end" and asked.stream_options and asked.stream_options.include_usage:
            yield {**head, "choices": [], "usage": usage_of(event.value)}
