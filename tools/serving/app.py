"""The HTTP application: which address does what, and errors in one form."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tools.serving.api_error import ApiError, json_response
from tools.serving.chat import chat_endpoint
from tools.serving.gate import Gate
from tools.serving.images import edits_endpoint, generations_endpoint
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
    """The page's files, with the headers that keep anything else out of it."""

    def file_response(self, *arguments, **options) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(HEADERS)
        return response


def build_app(service: Service, worker: Worker, hosts: Collection[str] | None) -> Gate:
    """The ASGI application. `hosts` are the names that it may be called by, None for any."""

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    async def health(request: Request) -> Response:
        status = "shutting_down" if gate.draining else "ok" if worker.is_alive() else "failed"
        content = {"status": status, "model": service.name, "requests": gate.inside}
        return json_response(content, 200 if status == "ok" else 503)

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [described(service)]})

    async def one_model(request: Request) -> Response:
        service.check_model(request.path_params["name"])
        return json_response(described(service))

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat_endpoint(service), methods=["POST"]),
            Route("/v1/images/generations", generations_endpoint(service), methods=["POST"]),
            Route("/v1/images/edits", edits_endpoint(service), methods=["POST"]),
            Mount("/page", PageFiles(directory=PAGE)),
        ],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_error,
            ClientGone: on_client_gone,
            Exception: on_fault,
        },
    )
    gate = Gate(app, service.limits, hosts, lambda: worker.last_seconds)
    return gate


def described(service: Service) -> dict:
    """The model in the words of the OpenAI API, and under `uni_x` what the page needs to know."""
    defaults, limits = service.defaults, service.limits
    own = {
        "size": service.size,
        "chat_format": "turns" if service.turns else "plain",
        "max_images": limits.samples,
        "max_tokens": limits.max_tokens,
        "guidance": defaults.guidance,
        "image_guidance": defaults.image_guidance,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
    }
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "local", "uni_x": own}


async def on_api_error(request: Request, error: Exception) -> Response:
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: addresses, methods, forms that cannot be read."""
    method_or_address = error.status_code in (404, 405)
    message = f"{request.method} {request.url.path[:100]}: {error.detail}" if method_or_address else error.detail
    response = ApiError(error.status_code, str(message)).response()
    response.headers.update(error.headers or {})
    return response


async def on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def on_fault(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed; its log says how").response()
