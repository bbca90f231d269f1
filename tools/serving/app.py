"""HTTP application: routes, and errors in one format."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from pretrain.system.disk import REMEDIES, disk_error, error_text
from tools.serving.admission import AdmissionControl, Callers
from tools.serving.api_error import ApiError, json_response
from tools.serving.chat import chat_endpoint
from tools.serving.completions import completions_endpoint
from tools.serving.images import edits_endpoint, generations_endpoint, pictures_endpoint
from tools.serving.metrics import ServerMetrics
from tools.serving.openapi import description
from tools.serving.responses import kept_endpoint, responses_endpoint
from tools.serving.service import ClientGone, Service
from tools.serving.worker import Worker

PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files of the page, with a content security policy."""

    def file_response(self, *arguments, **options) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(HEADERS)
        return response


def build_app(
    service: Service, worker: Worker, callers: Callers, metrics: ServerMetrics
) -> tuple[ASGIApp, AdmissionControl]:
    """Build the ASGI application, and its admission control, which counts requests in progress."""

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    async def health(request: Request) -> Response:
        status = "shutting_down" if admission.draining else "ok" if worker.is_alive() else "failed"
        content = {"status": status, "model": service.name, "requests": admission.inside}
        return json_response(content, 200 if status == "ok" else 503)

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [described(service)]})

    async def one_model(request: Request) -> Response:
        service.check_model(request.path_params["name"])
        return json_response(described(service))

    async def described_api(request: Request) -> Response:
        return json_response(description(service.names, bool(callers.keys)))

    async def api_page(request: Request) -> Response:
        return FileResponse(PAGE / "api.html", headers=HEADERS)

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", measured),
            Route("/openapi.json", described_api),
            Route("/api", api_page),
            Route("/pictures/{name}", pictures_endpoint(service)),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat_endpoint(service), methods=["POST"]),
            Route("/v1/completions", completions_endpoint(service), methods=["POST"]),
            Route("/v1/responses", responses_endpoint(service), methods=["POST"]),
            Route("/v1/responses/{name}", kept_endpoint(service), methods=["GET", "DELETE"]),
            Route("/v1/images/generations", generations_endpoint(service), methods=["POST"]),
            Route("/v1/images/edits", edits_endpoint(service), methods=["POST"]),
            Mount("/page", PageFiles(directory=PAGE)),
        ],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_error,
            ClientGone: on_client_gone,
            ClientDisconnect: on_client_gone,
            OSError: on_disk_error,
            Exception: on_fault,
        },
    )
    admission = AdmissionControl(app, service.limits, callers, lambda: worker.last_seconds, metrics)
    metrics.watch("uni_x_requests_inside", "Requests that are read, wait or are worked on", lambda: admission.inside)
    metrics.watch("uni_x_queue_length", "Requests that wait for the model", lambda: len(service.queue.waiting))
    if not callers.origins:
        return admission, admission
    shared = CORSMiddleware(
        admission,
        allow_origins=list(callers.origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )
    return shared, admission


def described(service: Service) -> dict:
    """The model in the format of the OpenAI API, and under `uni_x` what the page needs."""
    defaults, limits = service.defaults, service.limits
    own = {
        "size": "{}x{}".format(*service.shapes[0]),
        "sizes": ["{}x{}".format(*shape) for shape in service.shapes],  # the first is the default
        "chat_format": "turns" if service.turns else "plain",
        "skills": list(service.skills),
        "examples": list(service.examples),
        "context": service.context,
        "max_images": limits.samples,
        "max_tokens": limits.max_tokens,
        "max_pictures": limits.pictures,
        "max_pixels": limits.pixels,
        "guidance": defaults.guidance,
        "image_guidance": defaults.image_guidance,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
    }
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "local", "uni_x": own}


async def on_api_error(request: Request, error: Any) -> Response:
    return error.response()


async def on_http_error(request: Request, error: Any) -> Response:
    """Errors of Starlette: unknown routes, wrong methods, unreadable forms."""
    method_or_address = error.status_code in (404, 405)
    message = f"{request.method} {request.url.path[:100]}: {error.detail}" if method_or_address else error.detail
    message = f"{message}: /api lists what there is" if error.status_code == 404 else message
    response = ApiError(error.status_code, str(message)).response()
    response.headers.update(error.headers or {})
    return response


async def on_disk_error(request: Request, error: Exception) -> Response:
    """Disk errors: uploads of more than a megabyte are spooled to a temporary file."""
    found = disk_error(error)
    if found is None:
        raise error
    line = error_text(found, tempfile.gettempdir())
    print(f"warning: an upload was refused: {line}: {REMEDIES[found.errno or 0]}", file=sys.stderr, flush=True)
    return ApiError(
        507, "the server has no room for this upload: try again later", code="insufficient_storage"
    ).response()


async def on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client has left


async def on_fault(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed; its log says how").response()
