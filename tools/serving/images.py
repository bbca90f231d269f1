"""POST /v1/images/generations and /v1/images/edits: image generation, and editing by an instruction."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import cast

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from tools.generation.prompts import Request as Prompt
from tools.generation.prompts import Sampling, prompt_ids, sample_seed
from tools.serving.api_error import ApiError, json_response
from tools.serving.form_end import FormEnd
from tools.serving.jobs import Job, Usage
from tools.serving.pictures import asked_size, file_of, fitted, nearest
from tools.serving.schemas.fields import parse_form, parse_json
from tools.serving.schemas.pictures import EditRequest, PictureRequest
from tools.serving.service import Service, draw_seed, event_stream

NAMES = {"draw": "image_generation", "edit": "image_edit"}  # of the events of a stream
OURS = ("guidance", "image_guidance", "temperature", "top_k", "top_p")
SOURCE = re.compile(r"image(\[\d*\])?")  # spellings of a list of files by clients


def generations_endpoint(service: Service) -> Callable:
    """Endpoint of one service."""

    async def generations(request: Request) -> Response:
        asked = parse_json(PictureRequest, await request.body())
        return await answer(service, request, "draw", asked, [])

    return generations


def edits_endpoint(service: Service) -> Callable:
    """Endpoint of one service."""

    async def edits(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
            raise ApiError(400, "the body is no form: send multipart/form-data with a file named 'image'")
        limits = service.limits
        parts = 4 * limits.prompt_characters + 1024  # bytes of a field that is no file
        end = FormEnd(request)
        async with end.request.form(max_files=limits.pictures + 1, max_fields=48, max_part_size=parts) as form:
            end.check()
            files, fields = [], {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    data = await value.read()
                    if not value.filename and not data:  # an empty file field of a browser form
                        continue
                    if name in ("mask", "markup"):
                        fields[name] = f"a file of {len(data)} bytes"
                    elif not SOURCE.fullmatch(name):
                        raise ApiError(400, f"{name[:100]!r}: only 'image' takes a file", name[:100], "unknown_field")
                    else:
                        files.append(data)
                elif name in fields:
                    raise ApiError(400, f"{name[:100]!r} is given twice", name[:100], "invalid_value")
                elif SOURCE.fullmatch(name) and value:
                    message = f"{name}: it is no file: give the part a filename, as clients do for files"
                    raise ApiError(400, message, "image", "missing_image")
                elif value and not SOURCE.fullmatch(name):
                    fields[name] = value
        asked = parse_form(EditRequest, fields)
        if not files:
            raise ApiError(400, "image: there is no picture to edit: send one as a file", "image", "missing_image")
        return await answer(service, request, "edit", asked, files)

    return edits


async def answer(
    service: Service, request: Request, task: str, asked: PictureRequest, files: Sequence[bytes]
) -> Response:
    """Check a request and generate -> the response."""
    service.check_model(asked.model)
    check_picture(service, asked)
    if asked.partial_images and not asked.stream:
        raise ApiError(
            400, "partial_images: they are events of a stream: set stream to true", "partial_images", "invalid_value"
        )
    wanted = asked_size(asked.size, service.limits.pixels)
    sources = await service.squares(files, "image")
    sampling = sampling_of(service.defaults, asked)
    seed, prompt = draw_seed(asked.seed), Prompt(asked.prompt.strip())
    job = Job(
        task,
        lambda codes: prompt_ids(service.export, task, prompt, codes),
        sources,
        [sample_seed(seed, 0, sample) for sample in range(asked.n or 1)],
        sampling,
        shape=nearest(service.shapes, wanted) if len(service.shapes) > 1 else None,
        partial=(asked.partial_images or 0) if asked.stream else 0,
    )
    service.room(job, "prompt")
    kind = asked.output_format or "png"
    common = {
        "output_format": kind,
        "background": "opaque",
        "quality": "auto",
        "seed": seed,
    }

    async def encoded(picture: Image.Image) -> bytes:
        quality = 100 if asked.output_compression is None else asked.output_compression
        return await asyncio.to_thread(file_of, picture, fitted(picture.size, wanted), kind, quality)

    def size_of(picture: Image.Image) -> str:
        return "{}x{}".format(*fitted(picture.size, wanted))

    if asked.stream:
        return event_stream(picture_events(service, request, job, encoded, size_of, common))
    pictures, usage = {}, None
    async for event in service.events(request, job):
        if event.kind == "picture":
            pictures[event.row] = event.value
        elif event.kind == "end":
            usage = event.value
    data = []
    sizes = [size_of(picture) for _, picture in sorted(pictures.items())]
    for _, picture in sorted(pictures.items()):
        file = await encoded(picture)
        if asked.response_format == "url":
            name = service.files.put((file, f"image/{kind}"))
            data.append({"url": f"{request.base_url}pictures/{name}.{kind}"})
        else:
            data.append({"b64_json": base64_of(file)})
    if len(set(sizes)) > 1:  # the model chose different sizes: each picture has its own
        for entry, own in zip(data, sizes, strict=True):
            entry["size"] = own
    common = {"size": sizes[0], **common}
    return json_response({"created": int(time.time()), "data": data, **common, "usage": usage_of(cast(Usage, usage))})


def check_picture(service: Service, asked: PictureRequest) -> None:
    """Raises ApiError 400 for unsupported image options."""
    service.check_count(asked.n)
    if not asked.prompt.strip():
        raise ApiError(400, "prompt: give some text", "prompt", "invalid_value")
    if asked.stream and asked.response_format == "url":
        message = "response_format is 'url', and a stream holds its pictures: leave one of the two out"
        raise ApiError(400, message, "response_format", "invalid_value")
    if asked.output_compression not in (None, 100) and (asked.output_format or "png") == "png":
        message = "output_compression is for output_format 'jpeg' and 'webp': PNG loses nothing"
        raise ApiError(400, message, "output_compression", "invalid_value")
    service.check_words([asked.prompt], "prompt")


def sampling_of(defaults: Sampling, asked: PictureRequest) -> Sampling:
    """Sampling settings of a request, with the server's defaults."""
    given = {name: getattr(asked, name, None) for name in OURS}
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


async def picture_events(
    service: Service, request: Request, job: Job, encoded: Callable, size_of: Callable, common: dict
) -> AsyncIterator[dict]:
    """Server-sent events of a stream in the OpenAI API's format; `index` numbers the images of one request."""

    async def message(kind: str, picture: Image.Image, **more: object) -> dict:
        file = base64_of(await encoded(picture))
        values = {"type": f"{NAMES[job.task]}.{kind}", "b64_json": file, "created_at": int(time.time())}
        return {**values, "size": size_of(picture), **common, **more}

    done = {}
    async for event in service.events(request, job):
        if event.kind == "partial":
            yield await message("partial_image", event.value, partial_image_index=event.index, index=event.row)
        elif event.kind == "picture":
            done[event.row] = event.value
        elif event.kind == "end":
            for row, picture in sorted(done.items()):
                yield await message("completed", picture, index=row, usage=usage_of(event.value))


def pictures_endpoint(service: Service) -> Callable:
    """GET /pictures/NAME: image files that answers gave as URLs."""

    async def picture(request: Request) -> Response:
        found = service.files.get(request.path_params["name"].partition(".")[0])
        if found is None:
            minutes = f"{service.files.seconds / 60:g}"
            raise ApiError(404, f"there is no such picture, or no longer: they are kept for {minutes} minutes")
        headers = {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
        return Response(found[0], headers=headers, media_type=found[1])

    return picture


def base64_of(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode()


def usage_of(usage: Usage) -> dict:
    """Token usage of an image request in the OpenAI API's format."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"image_tokens": usage.picture, "text_tokens": usage.prompt - usage.picture},
        "output_tokens": usage.made,
        "total_tokens": usage.prompt + usage.made,
    }
