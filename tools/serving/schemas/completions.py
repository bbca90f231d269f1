"""Schema of POST /v1/completions: text completion and log probabilities."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from tools.serving.schemas.chat import NO_PENALTIES
from tools.serving.schemas.fields import (
    AtLeastOne,
    Fields,
    Label,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    TopK,
    TopP,
    nothing_but,
)

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def kind_of_prompt(value: Any) -> str:
    """Kind of a prompt by its first item: one text, texts, ids, or several lists of ids."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "lists"
    return "texts" if isinstance(first, str) else "ids" if isinstance(value, list) else "text"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Tag("lists")],
    Discriminator(kind_of_prompt),
]


class CompletionRequest(Fields):
    """The body of POST /v1/completions."""

    model: str
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = (
        None  # 16, as in the OpenAI API; 0 with echo: log probabilities of the prompt only
    )
    temperature: Temperature | None = None  # 1
    top_p: TopP | None = None  # 1
    top_k: TopK | None = None  # extension; 0: all
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: AtLeastOne | None = None
    echo: bool | None = None  # the prompt comes back before its continuation
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = (
        None  # log probability of each token, and so many likeliest ones
    )
    user: Label | None = None
    best_of: nothing_but(1, because="use n: every answer that is made comes back") = None
    suffix: nothing_but("", because="texts are only continued, never filled in: leave it out") = None
    presence_penalty: nothing_but(0, because=NO_PENALTIES) = None
    frequency_penalty: nothing_but(0, because=NO_PENALTIES) = None
    logit_bias: nothing_but({}, because="single tokens cannot be made likelier: leave it out") = None
