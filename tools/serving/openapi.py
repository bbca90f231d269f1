"""OpenAPI 3.1 description of the API, from the models that check requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tools.serving.schemas import answers
from tools.serving.schemas.chat import ChatRequest
from tools.serving.schemas.completions import CompletionRequest
from tools.serving.schemas.pictures import EditRequest, PictureRequest
from tools.serving.schemas.responses import ResponseRequest

REFERENCE = "#/components/schemas/{model}"
STREAM: dict[str, dict] = {"text/event-stream": {}}
"""Events have no schema: OpenAPI 3.1 has none for a stream, and clients differ in whether it is one of the text or of an event."""
KEPT = ("get", "delete")
"""What can be done with an answer of /v1/responses by its id."""
PROBLEMS = {
    "400": "the request, its texts, pictures or settings are not what they should be",
    "401": "the API key is missing or wrong",
    "403": "the caller used another name than the server's, or is a page of another site",
    "404": "there is no such address, model, answer or picture",
    "405": "the address takes another method",
    "408": "the body took too long",
    "413": "the body is too large",
    "429": "too many requests wait: Retry-After says when to come back",
    "500": "the server failed",
    "503": "the server is shutting down",
    "504": "the answer took too long",
}
READING, ASKING = ("400", "401", "403", "404", "405"), tuple(PROBLEMS)

# method, address, what it does, request, answer, whether it streams
OPERATIONS = (
    ("post", "/v1/chat/completions", "Answer a conversation in text", ChatRequest, answers.ChatCompletion, True),
    ("post", "/v1/responses", "Answer a conversation in text, and keep it", ResponseRequest, answers.Response, True),
    ("get", "/v1/responses/{name}", "An answer that is kept", None, answers.Response, False),
    ("delete", "/v1/responses/{name}", "Forget an answer", None, answers.Deleted, False),
    ("post", "/v1/completions", "Continue texts, and judge them", CompletionRequest, answers.Completion, True),
    ("post", "/v1/images/generations", "Draw pictures of a text", PictureRequest, answers.Pictures, True),
    ("post", "/v1/images/edits", "Edit pictures by an instruction", EditRequest, answers.Pictures, True),
    ("get", "/v1/models", "The models of this server: one", None, answers.ModelList, False),
    ("get", "/v1/models/{name}", "One model", None, answers.Model, False),
    ("get", "/health", "Whether the server works", None, answers.Health, False),
    ("get", "/metrics", "Counters in the form of Prometheus", None, "text/plain", False),
    ("get", "/pictures/{name}", "A picture whose address an answer gave", None, "image/*", False),
    ("get", "/openapi.json", "This description", None, "application/json", False),
    ("get", "/api", "This description as a page", None, "text/html", False),
    ("get", "/", "The page to chat, draw and edit", None, "text/html", False),
)


def description(names: Sequence[str], with_keys: bool) -> dict:
    """OpenAPI document of a server whose model has these names."""
    models = {model for operation in OPERATIONS for model in operation[3:5] if isinstance(model, type)} | {
        answers.Error
    }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=REFERENCE)
    paths: dict[str, dict] = {}
    for method, path, does, request, answer, streams in OPERATIONS:
        paths.setdefault(path, {})[method] = operation(method, path, does, request, answer, streams)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"Uni-X: {names[0]}",
            "version": "1",
            "description": "The OpenAI API, as far as the model goes.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
    form = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for request in (*schemas["$defs"].values(), form):
        if request.get("additionalProperties") is False and "model" in request["properties"]:
            request["properties"]["model"] = {"type": "string", "enum": list(names)}
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def operation(method: str, path: str, does: str, request: type | None, answer: type | str, streams: bool) -> dict:
    """One method of one route."""
    found: dict = {"summary": does, "operationId": operation_id(method, path), "responses": {}}
    if isinstance(answer, str):
        content = {answer: {"schema": {} if answer == "application/json" else {"type": "string"}}}
    else:
        content = {"application/json": {"schema": reference(answer)}}
    found["responses"]["200"] = {"description": does, "content": content | (STREAM if streams else {})}
    error = {"application/json": {"schema": reference(answers.Error)}}
    for status in READING if request is None else ASKING:
        found["responses"][status] = {"description": PROBLEMS[status], "content": error}
    if answer is answers.Response and request is not None:
        links = {verb: operation_id(verb, f"{path}/{{name}}") for verb in KEPT}
        parameters = {"name": "$response.body#/id"}
        found["responses"]["200"]["links"] = {
            verb: {"operationId": id, "parameters": parameters} for verb, id in links.items()
        }
    if path == "/health":
        found["responses"]["503"] = {"description": "it does not", "content": content}
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        found["parameters"] = [name]
    if request is not None:
        found["requestBody"] = {"required": True, "content": body_of(request)}
    return found


def body_of(request: type[BaseModel]) -> dict:
    """Content of a request body: JSON, or for edits a form with files."""
    if request is not EditRequest:
        return {"application/json": {"schema": reference(request)}}
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    own = request.model_json_schema(ref_template=REFERENCE)
    fields = {**own, "properties": {"image": files, **own["properties"]}, "required": ["image", *own["required"]]}
    return {"multipart/form-data": {"schema": fields}}


def reference(model: type) -> dict:
    """Reference to the schema of a model."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def operation_id(method: str, path: str) -> str:
    """OpenAPI operation id of a method and route."""
    words = [word for word in path.replace("{name}", "one").replace(".", "_").split("/") if word not in ("", "v1")]
    return "_".join([method, *(words or ["page"])])
