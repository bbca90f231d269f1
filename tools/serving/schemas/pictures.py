"""Schema of POST /v1/images/generations, and of the fields of POST /v1/images/edits without its images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tools.serving.schemas.fields import (
    AtLeastOne,
    Fields,
    Guidance,
    Label,
    Seed,
    Temperature,
    TopK,
    TopP,
    nothing_but,
)

ONE_QUALITY = "pictures have one quality: leave it out"
NO_FRAMES = "pictures do not move: leave it out"


class PictureRequest(Fields):
    """Body of POST /v1/images/generations. None stands for the server's default."""

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    n: AtLeastOne | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None  # of JPEG and WebP: quality, 100 the best
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=16)] | None = None
    # Accepted with any value, without effect: there is no other style, and no moderation.
    user: Label | None = None
    safety_identifier: Label | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    # Accepted only with values without effect.
    background: nothing_but("auto", "opaque", because="pictures have no transparent parts: leave it out") = None
    quality: nothing_but("auto", "standard", because=ONE_QUALITY) = None
    complexity: nothing_but(because=ONE_QUALITY) = None
    svg: nothing_but(because="pictures are made of pixels: leave it out") = None
    frame_count: nothing_but(1, because=NO_FRAMES) = None
    frame_duration_ms: nothing_but(because=NO_FRAMES) = None
    # Extensions.
    seed: Seed | None = None
    guidance: Guidance | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None


class EditRequest(PictureRequest):
    """Fields of POST /v1/images/edits without its images."""

    image_guidance: Guidance | None = None
    input_fidelity: nothing_but("low", because="use image_guidance: more keeps more of the source") = None
    mask: nothing_but(because="an edit has no mask: say in the prompt what is to change") = None
    markup: nothing_but(because="an edit has no markup: say in the prompt what is to change") = None
