"""POST /v1/images/generations and /v1/images/edits: pictures of a text, and of pictures and an instruction."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from tools.generation import Request as Prompt
from tools.generation import Sampling, prompt_ids, sample_seed
from tools.serving.api_error import ApiError, json_response
from tools.serving.jobs import Job, Usage
from tools.serving.schemas import EditRequest, PictureRequest, parse_form, parse_json
from tools.serving.service import Service, draw_seed, event_stream

NAMES = {"draw": "image_generation", "edit": "image_edit"}  # of the events of a stream
OURS = ("guidance", "image_guidance", "temperature", "top_k", "top_p")


def generations_endpoint(service: Service) -> Callable:
    """The endpoint of one service."""

    async def generations(request: Request) -> Response:
        asked = parse_json(PictureRequest, await request.body())
        return await answer(service, request, "draw", asked, [])

    return generations


def edits_endpoint(service: Service) -> Callable:
    """The endpoint of one service."""

    async def edits(request: Request) -> Response:
        limits = service.limits
        parts = 4 * limits.prompt_characters + 1024  # bytes of a field that is no file
        async with request.form(max_files=limits.pictures + 1, max_fields=32, max_part_size=parts) as form:
            files, fields = [], {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in ("image", "image[]"):
                        raise ApiError(400, f"{name[:100]!r}: only 'image' takes a file", name[:100], "unknown_field")
                    files.append(await value.read())
                elif name in fields:
                    raise ApiError(400, f"{name[:100]!r} is given twice", name[:100], "invalid_value")
                else:
                    fields[name] = value
        if not files:
            raise ApiError(400, "image: there is no picture to edit: send one as a file", "image", "missing_image")
        return await answer(service, request, "edit", parse_form(EditRequest, fields), files)

    return edits


async def answer(
    service: Service, request: Request, task: str, asked: PictureRequest, files: Sequence[bytes]
) -> Response:
    """Check what is asked, let the model make it -> the response."""
    service.check_model(asked.model)
    check_picture(service, asked)
    sources = await service.squares(files, "image")
    sampling = sampling_of(service.defaults, asked)
    seed, prompt = draw_seed(asked.seed), Prompt(asked.prompt.strip())
    job = Job(
        task,
        lambda codes: prompt_ids(service.export, task, prompt, codes),
        sources,
        [sample_seed(seed, 0, sample) for sample in range(asked.n or 1)],
        sampling,
        partial=(asked.partial_images or 0) if asked.stream else 0,
    )
    service.room(job, "prompt")
    common = {"size": service.size, "output_format": "png", "background": "opaque"}
    if asked.stream:
        return event_stream(picture_events(service, request, job, {**common, "quality": "auto", "seed": seed}))
    data, usage = [{}] * len(job.seeds), None
    async for event in service.events(request, job):
        if event.kind == "picture":
            data[event.row] = {"b64_json": base64_of(event.value)}
        elif event.kind == "end":
            usage = event.value
    return json_response({"created": int(time.time()), "data": data, **common, "seed": seed, "usage": usage_of(usage)})


def check_picture(service: Service, asked: PictureRequest) -> None:
    """Raises ApiError 400 for pictures that this model or this server does not make."""
    if asked.size not in (None, "auto", service.size):
        message = f"size is {asked.size[:40]!r}, and this model draws {service.size} only: leave it out"
        raise ApiError(400, message, "size", "invalid_value")
    if asked.n is not None and asked.n > service.limits.samples:
        raise ApiError(400, f"n is {asked.n}, the limit is {service.limits.samples}", "n", "invalid_value")
    if not asked.prompt.strip():
        raise ApiError(400, "prompt: give some text", "prompt", "invalid_value")
    service.check_words([asked.prompt], "prompt")


def sampling_of(defaults: Sampling, asked: PictureRequest) -> Sampling:
    """The settings of a request, the server's own where it says nothing."""
    given = {name: getattr(asked, name, None) for name in OURS}
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


async def picture_events(service: Service, request: Request, job: Job, common: dict) -> AsyncIterator[str]:
    """The events of a stream, as the OpenAI API frames them; `index` tells the pictures of one request apart."""

    def message(kind: str, picture: bytes, **more: object) -> str:
        kind = f"{NAMES[job.task]}.{kind}"
        values = {"type": kind, "b64_json": base64_of(picture), "created_at": int(time.time()), **common, **more}
        return f"event: {kind}\ndata: {json.dumps(values)}\n\n"

    done = {}
    async for event in service.events(request, job):
        if event.kind == "partial":
            yield message("partial_image", event.value, partial_image_index=event.index, index=event.row)
        elif event.kind == "picture":
            done[event.row] = event.value
        elif event.kind == "end":
            for row, picture in sorted(done.items()):
                yield message("completed", picture, index=row, usage=usage_of(event.value))
    yield "data: [DONE]\n\n"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def usage_of(usage: Usage) -> dict:
    """The tokens of a request for pictures in the words of the OpenAI API."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"image_tokens": usage.picture, "text_tokens": usage.prompt - usage.picture},
        "output_tokens": usage.made,
        "total_tokens": usage.prompt + usage.made,
    }
