"""Response schemas, for the API description and for tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of response schemas; more fields may be added later."""

    model_config = ConfigDict(extra="allow")


class Problem(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    error: Problem


class Health(Answer):
    status: Literal["ok", "shutting_down", "failed"]
    model: str
    requests: int


class OwnSettings(Answer):
    """Settings for the server's own page."""

    size: str
    sizes: list[str]
    chat_format: Literal["turns", "plain"]
    skills: list[Literal["draw", "edit", "caption", "chat"]]
    examples: list[str]
    context: int
    max_images: int
    max_tokens: int
    max_pictures: int
    max_pixels: int
    guidance: float
    image_guidance: float
    temperature: float
    top_k: int
    top_p: float


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    uni_x: OwnSettings


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class TextUsage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    seed: int
    choices: list[ChatChoice]
    usage: TextUsage


class Logprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    seed: int
    choices: list[TextChoice]
    usage: TextUsage


class Picture(Answer):
    b64_json: str | None = None
    url: str | None = None
    size: str | None = None  # where the pictures of an answer have several


class PictureUsage(Answer):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class Pictures(Answer):
    created: int
    data: list[Picture]
    size: str
    output_format: Literal["png", "jpeg", "webp"]
    background: Literal["opaque"]
    quality: Literal["auto"]
    seed: int
    usage: PictureUsage


class Response(Answer):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class Deleted(Answer):
    id: str
    object: Literal["response.deleted"]
    deleted: bool
