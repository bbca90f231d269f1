"""Schema of POST /v1/responses: texts and images, and earlier turns by text or by response id."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tools.serving.schemas.chat import NO_JSON, NO_TOOLS, ONE_TIER
from tools.serving.schemas.fields import (
    Fields,
    Hint,
    Label,
    Labels,
    Seed,
    StreamOptions,
    Temperature,
    TopK,
    TopP,
    nothing_but,
    text_or,
)


class InputText(Fields):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Hint = None


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None  # the model has one size: they are all the same
    file_id: nothing_but(because="no files are kept: send image_url as data:image/png;base64,...") = None
    prompt_cache_breakpoint: Hint = None


class OutputText(Fields):
    type: Literal["output_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class Refusal(Fields):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | InputImage | OutputText | Refusal, Field(discriminator="type")]


class InputMessage(Fields):
    """A message of the user or of the model: as clients write it, or as this server returned it."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: text_or(Part)
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Label | None = None


class ItemReference(Fields):
    type: Literal["item_reference"]
    id: str


class Reasoning(Fields):
    """Reasoning items of other models, which are ignored."""

    type: Literal["reasoning"]
    id: Label | None = None
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None
    status: Any = None


def kind_of_item(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None) or "message"
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(kind_of_item),
]


class TextFormat(Fields):
    format: nothing_but({"type": "text"}, because=NO_JSON) = None
    verbosity: nothing_but("medium", because="use max_output_tokens, or ask for it in a message") = None


class ReasoningOptions(Fields):
    effort: nothing_but("none", because="this model does not think before it answers: leave it out") = None
    summary: nothing_but("auto", because="this model does not think before it answers: leave it out") = None
    generate_summary: nothing_but("auto", because="this model does not think before it answers: leave it out") = None


class ResponseRequest(Fields):
    """The body of POST /v1/responses."""

    model: str
    input: text_or(Item)
    instructions: str | None = None  # system message
    previous_response_id: str | None = None
    store: bool | None = None  # true, as in the OpenAI API: stored for a while, for later reference
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None  # 1
    top_p: TopP | None = None  # 1
    top_k: TopK | None = None  # extension; 0: all
    seed: Seed | None = None  # extension
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted with any value, without effect.
    user: Label | None = None
    safety_identifier: Label | None = None
    metadata: Labels | None = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    prompt_cache_options: Hint = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    include: Annotated[list[str], Field(description="accepted: what it names does not occur here")] | None = None
    # Accepted only with values without effect.
    background: nothing_but(False, because="answers are not made in the background: use stream") = None
    truncation: nothing_but("disabled", because="a conversation that is too long is refused: shorten it") = None
    text: TextFormat | None = None
    reasoning: ReasoningOptions | None = None
    tools: nothing_but([], because=NO_TOOLS) = None
    tool_choice: nothing_but("none", "auto", because=NO_TOOLS) = None
    top_logprobs: nothing_but(0, because="POST /v1/completions has log-probabilities") = None
    service_tier: nothing_but("auto", "default", because=ONE_TIER) = None
    conversation: nothing_but(because="conversations are not kept: use previous_response_id") = None
    prompt: nothing_but(because="no prompts are kept: send instructions and input") = None
    context_management: nothing_but([], because="a conversation that is too long is refused: shorten it") = None
    moderation: nothing_but(because="nothing is moderated: leave it out") = None
    access_programs: nothing_but(because="there are none: leave it out") = None
    image: nothing_but(because="answers are texts: POST /v1/images/generations draws") = None
