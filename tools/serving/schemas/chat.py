"""Schema of POST /v1/chat/completions, and of messages, including those that the server returned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tools.serving.schemas.fields import (
    AtLeastOne,
    Fields,
    Hint,
    Label,
    Labels,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    TopK,
    TopP,
    nothing_but,
    text_or,
)

NO_TOOLS = "this server calls no tools: describe in a message what you need"
NO_JSON = "answers are not made to fit a form: ask for it in a message, and check what comes"
NO_PENALTIES = "there are no penalties: use temperature, top_k and top_p"
NO_SOUND = "this model reads and writes no sound"
ONE_TIER = "there is one tier of service"


class ImageUrl(Fields):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None  # the model has one size: they are all the same


class TextPart(Fields):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Hint = None
    cache_control: Hint = None


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Hint = None
    cache_control: Hint = None


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
SystemPart = Annotated[TextPart, Field()]


class UserMessage(Fields):
    role: Literal["user"]
    content: text_or(UserPart)
    name: Label | None = None


class SystemMessage(Fields):
    role: Literal["system", "developer"]
    content: text_or(SystemPart)
    name: Label | None = None


class AssistantMessage(Fields):
    role: Literal["assistant"]
    content: text_or(AssistantPart) | None = None
    refusal: str | None = None  # refusal text in place of content
    name: Label | None = None
    # Fields of other models' answers. Reasoning is ignored.
    reasoning_content: Any = None
    reasoning: Any = None
    annotations: Any = None
    provider_specific_fields: Any = None
    tool_calls: nothing_but([], because=NO_TOOLS) = None
    function_call: nothing_but(because=NO_TOOLS) = None
    audio: nothing_but(because=NO_SOUND) = None


Message = Annotated[UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role")]


class ChatRequest(Fields):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: AtLeastOne | None = None
    max_completion_tokens: AtLeastOne | None = None
    temperature: Temperature | None = None  # 1, as in the OpenAI API
    top_p: TopP | None = None  # 1
    top_k: TopK | None = None  # extension; 0: all
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: AtLeastOne | None = None
    # Accepted with any value, without effect.
    user: Label | None = None
    safety_identifier: Label | None = None
    metadata: Labels | None = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    prompt_cache_options: Hint = None
    parallel_tool_calls: bool | None = None
    # Accepted only with values without effect.
    store: nothing_but(False, because="chats are not stored: POST /v1/responses stores its answers") = None
    logprobs: nothing_but(False, because="chats have no log-probabilities: POST /v1/completions has them") = None
    top_logprobs: nothing_but(0, because="chats have no log-probabilities: POST /v1/completions has them") = None
    presence_penalty: nothing_but(0, because=NO_PENALTIES) = None
    frequency_penalty: nothing_but(0, because=NO_PENALTIES) = None
    logit_bias: nothing_but({}, because="single tokens cannot be made likelier: leave it out") = None
    tools: nothing_but([], because=NO_TOOLS) = None
    tool_choice: nothing_but("none", "auto", because=NO_TOOLS) = None
    functions: nothing_but([], because=NO_TOOLS) = None
    function_call: nothing_but("none", "auto", because=NO_TOOLS) = None
    response_format: nothing_but({"type": "text"}, because=NO_JSON) = None
    modalities: nothing_but(["text"], because="answers are texts: POST /v1/images/generations draws") = None
    audio: nothing_but(because=NO_SOUND) = None
    prediction: nothing_but(because="answers are not predicted: leave it out") = None
    reasoning_effort: nothing_but("none", because="this model does not think before it answers: leave it out") = None
    verbosity: nothing_but("medium", because="use max_tokens, or ask for it in a message") = None
    service_tier: nothing_but("auto", "default", because=ONE_TIER) = None
    web_search_options: nothing_but(because="nothing is searched: leave it out") = None
    moderation: nothing_but(because="nothing is moderated: leave it out") = None
