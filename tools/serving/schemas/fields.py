"""Base schema: null means absent, unknown fields are refused, and errors are one line in plain words.

A field that is not here is refused, because a setting that is silently ignored gives an answer that was not asked for.
A field that asks for nothing (`nothing_but`) is accepted, because clients send such values of their own accord.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, from_json

from tools.serving.api_error import ApiError

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[str, Field(description="accepted and not used: it labels a request, and nothing here depends on it")]
Hint = Annotated[
    Any, Field(description="accepted and not used: it tunes a cache of prompts, which this server has not")
]
Labels = Annotated[dict[str, str], Field(description="accepted, said again where the API does, and not used")]


def text_or_list(value: Any) -> str:
    """Discriminator of a union of a text and a list."""
    return "list" if isinstance(value, list) else "text"


def text_or(items: Any) -> Any:
    """Type of a field that is a text or a list of `items`, with errors for the variant that was sent."""
    return Annotated[Annotated[str, Tag("text")] | Annotated[list[items], Tag("list")], Discriminator(text_or_list)]


Stop = Annotated[
    Annotated[StopText, Tag("text")] | Annotated[list[StopText], Field(max_length=4), Tag("list")],
    Discriminator(text_or_list),
]


class Fields(BaseModel):
    """Base schema, strict about types and names."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding of events, which this server never adds


def nothing_but(*values: Any, because: str) -> Any:
    """Type of a field that is accepted only with values without effect. `because` says why, and what to do instead."""

    def check(found: Any, info: ValidationInfo) -> Any:
        texts = bool(info.context and info.context.get("form"))
        for value in values:
            same_kind = isinstance(found, bool) == isinstance(value, bool)
            if (same_kind and found == value) or (texts and found == as_text(value)):
                return value
        raise PydanticCustomError("not_supported", "{because}", {"because": because, "values": list(values)})

    return Annotated[Any, PlainValidator(check), WithJsonSchema({"enum": list(values), "description": because})]


def as_text(value: Any) -> str:
    """A text unchanged, another value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_json(kind: type[Fields], body: bytes):
    """Parse a JSON body. Raises ApiError 400 with the field's name."""
    try:
        values = without_nulls(from_json(body))  # which has a bound for nesting
        json.loads(body, object_pairs_hook=each_once)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    try:
        return kind.model_validate(values, strict=True)
    except ValidationError as error:
        raise refusal(kind, error, values) from None


def parse_form(kind: type[Fields], fields: dict[str, str]):
    """Parse form fields, whose numbers are texts. Raises ApiError 400 with the field's name."""
    given = {name: value for name, value in fields.items() if value != ""}  # empty form fields are absent
    try:
        return kind.model_validate(given, context={"form": True})
    except ValidationError as error:
        raise refusal(kind, error, given) from None


def each_once(pairs: list[tuple[str, Any]]) -> None:
    """Raises ApiError 400 for duplicate keys of an object: parsers would take the last."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ApiError(400, f"{name[:100]!r} is given twice in one object", name[:100], "invalid_value")
        seen.add(name)


def without_nulls(value: Any) -> Any:
    """Fields without those that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def refusal(kind: type[Fields], error: ValidationError, values: Any) -> ApiError:
    """The first error of a request in one line: where, what was found, and what would be right."""
    problem = error.errors(include_url=False)[0]
    names = place_of(problem["loc"], values)
    place = ".".join(map(str, names))[:200]
    if problem["type"] == "extra_forbidden":
        return unknown(kind, names, place)
    if problem["type"] == "missing":
        return ApiError(400, f"{place}: it is missing", place, "missing_field")
    found = found_at(names, values)
    where = f"{place} is {shown(found)}" if names else "the body"
    if problem["type"] == "not_supported":
        values_here = " or ".join(map(shown, problem["ctx"]["values"]))
        only = f" (or send {values_here}, which asks for nothing)" if values_here else ""
        message = f"{where}: {problem['ctx']['because']}{only}"
        return ApiError(400, message, place, "unsupported_value")
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return wrong_kind(names, found, problem)
    return ApiError(400, f"{where}: {words_of(problem)}", place or None, "invalid_value")


def place_of(steps: Sequence[str | int], values: Any) -> list[str | int]:
    """Path of an error in the request's own names: pydantic's path also has the branches of unions."""
    names: list[str | int] = []
    here = values
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if isinstance(here, dict) and isinstance(step, str) and (step in here or last):
            names.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            names.append(step)
            here = here[step]
    return names


def found_at(names: Sequence[str | int], values: Any) -> Any:
    """The value at a path of names and positions."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else values[name]
    return values


def shown(value: Any) -> str:
    """A value, shortened for an error message."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=str)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def unknown(kind: type[Fields], names: Sequence[str | int], place: str) -> ApiError:
    """Error for an unknown field, with the name that may have been meant."""
    near = difflib.get_close_matches(str(names[-1]), kind.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near and len(names) == 1 else "leave it out"
    return ApiError(400, f"{place[:100]!r} is not a field that this server knows: {hint}", place[:100], "unknown_field")


def wrong_kind(names: Sequence[str | int], found: Any, problem: Any) -> ApiError:
    """Error for an unknown `type` or `role` of a part."""
    if not isinstance(found, dict):
        place = ".".join(map(str, names))
        return ApiError(400, f"{place or 'the body'} is {shown(found)}: it must be an object", place, "invalid_value")
    name = problem["ctx"]["discriminator"].strip("'")
    name = "type" if name.endswith("()") else name  # discriminator function of a union
    place = ".".join(map(str, [*names, name]))
    known = problem["ctx"].get("expected_tags", "")
    if name not in found:
        return ApiError(400, f"{place}: it is missing", place, "missing_field")
    message = f"{place} is {shown(found[name])}: it must be one of {known}" if known else f"{place}: it is not known"
    return ApiError(400, message + other_places(found[name], known), place, "invalid_value")


def other_places(kind: Any, known: str) -> str:
    """Remedy for a part or role of other parts of the OpenAI API, or of other servers' messages; `known` are those
    here."""
    if kind == "image_url" and "'text'" in known:
        return " here; pictures stand in messages of the user"
    if kind in ("input_text", "input_image", "output_text"):
        return f" here; {kind!r} belongs to POST /v1/responses"
    if kind in ("text", "image_url"):
        return f" here; {kind!r} belongs to POST /v1/chat/completions"
    if kind in ("tool", "function", "function_call", "function_call_output"):
        return "; this server calls no tools, so a conversation cannot hold their results"
    return ""


def words_of(problem: Any) -> str:
    """pydantic's error in plain words."""
    given = problem.get("ctx") or {}
    words = WORDS.get(problem["type"])
    if problem["loc"][-1:] == ("image_url",):
        return 'it must be an object like {"url": "data:image/png;base64,..."}'
    return words.format(**given) if words else problem["msg"].replace("Input should", "it must").replace("Value", "it")


WORDS = {
    "string_type": "it must be a text",
    "string_too_short": "it must have at least {min_length} character(s)",
    "string_too_long": "it must have at most {max_length} characters",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "finite_number": "it must be a finite number",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "list_type": "it must be a list",
    "dict_type": "it must be an object",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_short": "it must have at least {min_length} item(s)",
    "too_long": "it must have at most {max_length} items",
}
