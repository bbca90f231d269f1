"""POST /v1/chat/completions: a conversation with images, answered in text."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from tools.serving.api_error import ApiError, json_response
from tools.serving.conversation import check_turns, prompt_of, turns_of
from tools.serving.jobs import Job, Usage
from tools.serving.schemas.chat import ChatRequest
from tools.serving.schemas.fields import parse_json
from tools.serving.service import Service, event_stream
from tools.serving.texts import TextSettings, collect, text_job, usage_of


def chat_endpoint(service: Service) -> Callable:
    """Endpoint of one service."""

    async def chat(request: Request) -> Response:
        asked = parse_json(ChatRequest, await request.body())
        service.check_model(asked.model)
        turns, files = turns_of(asked.messages)
        check_turns(service, turns, "messages")
        wanted = asked.max_completion_tokens or asked.max_tokens
        if asked.max_tokens not in (None, wanted):
            message = (
                f"max_tokens is {asked.max_tokens} and max_completion_tokens {wanted}: they say the same, send one"
            )
            raise ApiError(400, message, "max_tokens", "invalid_value")
        settings = TextSettings.of(asked, max_tokens=wanted)
        job, seed = await text_job(service, prompt_of(service, turns), files, settings, "messages", "max_tokens")
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name, "seed": seed}
        if asked.stream:
            return event_stream(chunks(service, request, job, asked, head))
        found = await collect(service, request, job)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for number, (text, reason) in enumerate(zip(found.texts, found.reasons, strict=True))
        ]
        return json_response(
            {**head, "object": "chat.completion", "choices": choices, "usage": usage_of(cast(Usage, found.usage))}
        )

    return chat


async def chunks(service: Service, request: Request, job: Job, asked: ChatRequest, head: dict) -> AsyncIterator[dict]:
    """Server-sent events of a streamed answer in the OpenAI API's format."""
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def chunk(row: int, delta: dict, reason: str | None = None) -> dict:
        choice = {"index": row, "delta": delta, "logprobs": None, "finish_reason": reason}
        more = {"usage": None} if with_usage else {}
        return {**head, "object": "chat.completion.chunk", "choices": [choice], **more}

    for row in range(len(job.seeds)):
        yield chunk(row, {"role": "assistant", "content": ""})
    async for event in service.events(request, job):
        if event.kind == "text":
            yield chunk(event.row, {"content": event.value})
        elif event.kind == "stopped":
            yield chunk(event.row, {}, event.value)
        elif event.kind == "end" and with_usage:
            usage = usage_of(event.value)
            yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
