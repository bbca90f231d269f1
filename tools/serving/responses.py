"""POST /v1/responses: a conversation answered in text, stored for a while so that the next request can refer to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from tools.serving.api_error import ApiError, json_response
from tools.serving.conversation import Turn, check_turns, prompt_of
from tools.serving.jobs import Job, Usage
from tools.serving.pictures import bytes_of_data_uri
from tools.serving.schemas.fields import parse_json
from tools.serving.schemas.responses import ResponseRequest
from tools.serving.service import Service, event_stream
from tools.serving.texts import TextSettings, collect, text_job


@dataclass(frozen=True)
class Answer:
    """Stored answer: the response, and the conversation with it, whose images are files."""

    body: dict
    turns: list[Turn]
    files: list[bytes]

    @property
    def size(self) -> int:
        """Approximate bytes."""
        texts = sum(len(part or "") for _, parts in self.turns for part in parts)
        return 2000 + 4 * texts + sum(map(len, self.files))


def responses_endpoint(service: Service) -> Callable:
    """Endpoint of one service."""

    async def responses(request: Request) -> Response:
        asked = parse_json(ResponseRequest, await request.body())
        service.check_model(asked.model)
        turns, files = turns_of(service, asked)
        instructions: list[Turn] = [("system", [asked.instructions])] if asked.instructions else []
        check_turns(service, [*instructions, *turns], "input")
        settings = TextSettings.of(asked, max_tokens=asked.max_output_tokens)
        prompt = prompt_of(service, [*instructions, *turns])
        job, seed = await text_job(service, prompt, files, settings, "input", "max_output_tokens")
        body, item = begun(service, asked, seed), f"msg_{uuid.uuid4().hex}"

        def keep(text: str, reason: str, usage: Usage) -> dict:
            whole = ended(body, item, text, reason, usage)
            if asked.store is not False:
                answer = Answer(whole, [*turns, ("assistant", [text])], files)
                service.answers.put(answer, body["id"])
                service.answers.put(Answer({}, [("assistant", [text])], []), item)
            return whole

        if asked.stream:
            return event_stream(response_events(service, request, job, body, item, keep), done=False)
        found = await collect(service, request, job)
        return json_response(keep(found.texts[0], found.reasons[0], cast(Usage, found.usage)))

    return responses


def kept_endpoint(service: Service) -> Callable:
    """GET and DELETE /v1/responses/NAME: a stored answer."""

    async def kept(request: Request) -> Response:
        name = request.path_params["name"]
        answer = find(service, name, "response_id")
        if request.method == "DELETE":
            service.answers.drop(name)
            return json_response({"id": name, "object": "response.deleted", "deleted": True})
        return json_response(answer.body)

    return kept


def find(service: Service, name: str, param: str, item: bool = False) -> Answer:
    """A stored response, or the message of one, which is stored without a body. Raises ApiError 400 or 404."""
    answer = service.answers.get(name)
    if answer is not None and item == bool(answer.body):
        other = (
            "a response: give it as previous_response_id" if item else "a message of a response: give the response's id"
        )
        raise ApiError(400, f"{param} is {name!r}, which is {other}", param, "invalid_value")
    if answer is None:
        minutes = f"{service.answers.seconds / 60:g}"
        message = (
            f"{param}: there is no {name[:100]!r}, or no longer: answers are kept for {minutes} minutes, in memory; "
        )
        raise ApiError(404, message + "send the conversation itself", param, "not_found")
    return answer


def turns_of(service: Service, asked: ResponseRequest) -> tuple[list[Turn], list[bytes]]:
    """Turns of a request and of the response that it refers to, and their image files. Raises ApiError 400 or 404."""
    turns: list[Turn] = []
    files: list[bytes] = []
    if asked.previous_response_id:
        before = find(service, asked.previous_response_id, "previous_response_id")
        turns, files = [*before.turns], [*before.files]
    if isinstance(asked.input, str):
        return [*turns, ("user", [asked.input])], files
    for number, item in enumerate(asked.input):
        kind = item.type or "message"
        if kind == "item_reference":
            turns += find(service, item.id, f"input.{number}.id", item=True).turns
        elif kind == "message":
            turns.append(("system" if item.role == "developer" else item.role, parts_of(item, number, files)))
    if not turns:
        raise ApiError(400, "input: give a text or a message", "input", "invalid_value")
    return turns, files


def parts_of(message: Any, number: int, files: list[bytes]) -> list[str | None]:
    """Texts of a message, and None for each image, whose file is added to `files`. Raises ApiError 400."""
    parts: list[str | None] = []
    for place, part in enumerate([message.content] if isinstance(message.content, str) else message.content):
        if isinstance(part, str):
            parts.append(part)
        elif part.type == "input_image":
            where = f"input.{number}.content.{place}.image_url"
            if part.image_url is None:
                raise ApiError(400, f"{where}: it is missing", where, "missing_field")
            files.append(bytes_of_data_uri(part.image_url, where))
            parts.append(None)
        else:
            parts.append(part.refusal if part.type == "refusal" else part.text)
    return parts


def begun(service: Service, asked: ResponseRequest, seed: int) -> dict:
    """Response object before generation."""
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": service.name,
        "output": [],
        "parallel_tool_calls": bool(asked.parallel_tool_calls),
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "seed": seed,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [],
        "top_p": asked.top_p or 1.0,
        "truncation": "disabled",
        "usage": None,
    }


def ended(body: dict, item: str, text: str, reason: str, usage: Usage) -> dict:
    """Response object with its text."""
    status = "completed" if reason == "stop" else "incomplete"
    return {
        **body,
        "status": status,
        "incomplete_details": None if reason == "stop" else {"reason": "max_output_tokens"},
        "output": [message_of(item, status, text)],
        "usage": {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.made,
        },
    }


def message_of(item: str, status: str, text: str | None) -> dict:
    """Output message of a response, with its text if there is one."""
    content = [] if text is None else [text_part(text)]
    return {"id": item, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict:
    """Output text part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def response_events(
    service: Service, request: Request, job: Job, body: dict, item: str, keep: Callable
) -> AsyncIterator[dict]:
    """Server-sent events of a streamed response, numbered as in the OpenAI API."""
    number, where = -1, {"item_id": item, "output_index": 0, "content_index": 0}

    def event(kind: str, **values: object) -> dict:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **values}

    yield event("response.created", response=body)
    yield event("response.in_progress", response=body)
    yield event("response.output_item.added", output_index=0, item=message_of(item, "in_progress", None))
    yield event("response.content_part.added", **where, part=text_part(""))
    text, reason, usage = "", "stop", None
    try:
        async for found in service.events(request, job):
            if found.kind == "text":
                text += found.value
                yield event("response.output_text.delta", **where, delta=found.value, logprobs=[])
            elif found.kind == "stopped":
                reason = found.value
            elif found.kind == "end":
                usage = found.value
    except ApiError as error:
        failed = {**body, "status": "failed", "error": {"code": "server_error", "message": error.message}}
        yield event("response.failed", response=failed)
        return
    whole = keep(text, reason, usage)
    yield event("response.output_text.done", **where, text=text, logprobs=[])
    yield event("response.content_part.done", **where, part=text_part(text))
    yield event("response.output_item.done", output_index=0, item=whole["output"][0])
    yield event("response.completed" if reason == "stop" else "response.incomplete", response=whole)
