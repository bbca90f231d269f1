"""POST /v1/chat/completions: a conversation with pictures in it, answered in text."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from model.prompts import TURN_END, conversation_ids
from tools.generation import Request as Prompt
from tools.generation import prompt_ids, sample_seed
from tools.serving.api_error import ApiError, json_response
from tools.serving.jobs import Job, Usage
from tools.serving.pictures import bytes_of_data_uri
from tools.serving.schemas import ChatRequest, Message, parse_json
from tools.serving.service import Service, draw_seed, event_stream

Turn = tuple[str, list[str | None]]  # role and parts: texts, and None where a picture stands


def chat_endpoint(service: Service) -> Callable:
    """The endpoint of one service."""

    async def chat(request: Request) -> Response:
        asked = parse_json(ChatRequest, await request.body())
        service.check_model(asked.model)
        job, seed = await job_of(service, asked)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name, "seed": seed}
        if asked.stream:
            return event_stream(chunks(service, request, job, asked, head))
        text, usage = "", None
        async for event in service.events(request, job):
            if event.kind == "text":
                text += event.value
            elif event.kind == "end":
                usage = event.value
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": usage.reason}
        return json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage_of(usage)})

    return chat


async def job_of(service: Service, asked: ChatRequest) -> tuple[Job, int]:
    """The job of a request, and its seed. Raises ApiError 400."""
    turns, files = turns_of(service, asked.messages)
    service.check_words([part for _, parts in turns for part in parts if part], "messages")
    pictures = await service.squares(files, "messages")
    seed = draw_seed(asked.seed)
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if service.turns and len(service.export.markup(TURN_END)) > 1:
        stop = [*stop, TURN_END]  # a tokenizer without this token spells it out
    temperature = 1.0 if asked.temperature is None else asked.temperature
    sampling = replace(service.defaults, text_temperature=temperature, top_k=0, top_p=asked.top_p or 1.0)
    prompt, stream = prompt_of(service, turns), bool(asked.stream)
    job = Job("text", prompt, pictures, [sample_seed(seed, 0, 0)], sampling, stop, stream)
    wanted, limit = asked.max_completion_tokens or asked.max_tokens, service.limits.max_tokens
    if wanted and wanted > limit:
        raise ApiError(400, f"max_tokens is {wanted}, the limit is {limit}", "max_tokens", "invalid_value")
    room = service.room(job, "messages")
    if wanted and wanted > room:
        message = f"max_tokens is {wanted}, and the model has room for {room} after this prompt"
        raise ApiError(400, message, "max_tokens", "context_length_exceeded")
    job.sampling = replace(sampling, max_new_tokens=wanted or min(limit, room))
    return job, seed


def turns_of(service: Service, messages: Sequence[Message]) -> tuple[list[Turn], list[bytes]]:
    """The turns of a conversation and the files of its pictures, in order. Raises ApiError 400."""
    if len(messages) > service.limits.messages:
        limit = service.limits.messages
        raise ApiError(400, f"messages: {len(messages)} messages, the limit is {limit}", "messages", "invalid_value")
    turns, files = [], []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts: list[str | None] = []
        for place, part in enumerate([message.content] if isinstance(message.content, str) else message.content):
            if isinstance(part, str):
                parts.append(part)
            elif part.type == "text":
                parts.append(part.text)
            else:
                where = f"messages.{number}.content.{place}.image_url"
                if role != "user":
                    raise ApiError(400, f"{where}: only messages of the user hold pictures", where, "invalid_value")
                files.append(bytes_of_data_uri(part.image_url.url, where))
                parts.append(None)
        turns.append((role, parts))
    last = turns[-1]
    if last[0] != "user" or not any(part is None or part.strip() for part in last[1]):
        raise ApiError(400, "messages: the last one must be the user's, with a text or a picture", "messages")
    if not service.turns and len(turns) > 1:
        message = "messages: this model is served with --chat-format plain, which takes one message"
        raise ApiError(400, message, "messages", "invalid_value")
    return turns, files


def prompt_of(service: Service, turns: Sequence[Turn]) -> Callable:
    """What makes the ids of a conversation, once the codes of its pictures are known."""
    export = service.export
    question = export.templates.image_to_text[0]

    def plain(codes: Sequence) -> tuple[list[int], None]:
        text = "".join(part for part in turns[0][1] if part).strip()
        return prompt_ids(export, "caption" if len(codes) == 1 else "text", Prompt(text), codes)

    def conversation(codes: Sequence) -> tuple[list[int], None]:
        left = iter(codes)
        filled = [(role, [next(left) if part is None else part for part in parts]) for role, parts in turns]
        if not any(isinstance(part, str) and part.strip() for part in filled[-1][1]):
            filled[-1] = (filled[-1][0], [*filled[-1][1], question])  # a picture alone: what is to be seen in it
        return conversation_ids(filled, export.encode, export.markup, export.vocabulary), None

    return conversation if service.turns else plain


async def chunks(service: Service, request: Request, job: Job, asked: ChatRequest, head: dict) -> AsyncIterator[str]:
    """The events of a streamed answer, as the OpenAI API frames them."""

    def chunk(delta: dict | None, reason: str | None = None, **more: object) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    async for event in service.events(request, job):
        if event.kind == "text":
            yield chunk({"content": event.value})
        elif event.kind == "end":
            yield chunk({}, event.value.reason)
            if asked.stream_options and asked.stream_options.include_usage:
                yield chunk(None, usage=usage_of(event.value))
    yield "data: [DONE]\n\n"


def usage_of(usage: Usage) -> dict:
    """A text's tokens in the words of the OpenAI API."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.made,
        "total_tokens": usage.prompt + usage.made,
    }
