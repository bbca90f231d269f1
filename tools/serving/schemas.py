"""What requests may say: the fields of the OpenAI API that mean something here, and a few of our own.

Fields that are not here are refused, because a setting that is silently ignored gives an answer that was not asked for.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tools.serving.api_error import ApiError

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class Fields(BaseModel):
    """Strict about types and names."""

    model_config = ConfigDict(extra="forbid")


class ImageUrl(Fields):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # the model has one size: they are all the same


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None  # not shown to the model


class StreamOptions(Fields):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding of events, which this server never adds


class ChatRequest(Fields):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None  # 1, as in the OpenAI API
    top_p: TopP | None = None  # 1
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: str | None = None  # not used


class PictureRequest(Fields):
    """The body of POST /v1/images/generations. None stands for the server's own setting."""

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=16)] | None = None
    user: str | None = None  # not used
    # Our own.
    seed: Seed | None = None
    guidance: Guidance | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: TopP | None = None


class EditRequest(PictureRequest):
    """The fields of POST /v1/images/edits other than its pictures."""

    image_guidance: Guidance | None = None


def parse_json(kind: type[Fields], body: bytes):
    """A request of a JSON body. Raises ApiError 400, which names the field."""
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise refusal(kind, error) from None


def parse_form(kind: type[Fields], fields: dict[str, str]):
    """A request of a form's fields, whose numbers are texts. Raises ApiError 400, which names the field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise refusal(kind, error) from None


def refusal(kind: type[Fields], error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}", code="invalid_json")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return ApiError(400, f"{place or 'the body'}: {first['msg']}", place or None, "invalid_value")
    near = difflib.get_close_matches(place, kind.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "leave it out"
    return ApiError(400, f"{place[:100]!r} is not a field that this server knows: {hint}", place[:100], "unknown_field")
