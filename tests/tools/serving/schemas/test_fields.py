"""What requests may say: every field of the official client is used, asks for nothing, or is refused by its name."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params, image_edit_params, image_generate_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tools.serving.api_error import ApiError
from tools.serving.schemas.chat import ChatRequest
from tools.serving.schemas.completions import CompletionRequest
from tools.serving.schemas.fields import Fields, parse_form, parse_json
from tools.serving.schemas.pictures import EditRequest, PictureRequest
from tools.serving.schemas.responses import ResponseRequest

OFFICIAL = {
    ChatRequest: chat_create_params.CompletionCreateParamsBase,
    CompletionRequest: completion_create_params.CompletionCreateParamsBase,
    PictureRequest: image_generate_params.ImageGenerateParamsBase,
    EditRequest: image_edit_params.ImageEditParamsBase,
    ResponseRequest: response_create_params.ResponseCreateParamsBase,
}
LEAST = {
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    CompletionRequest: {"model": "m", "prompt": "x"},
    PictureRequest: {"prompt": "x"},
    EditRequest: {"prompt": "x"},
    ResponseRequest: {"model": "m", "input": "x"},
}
NEUTRAL = {  # what clients send of their own accord
    "logprobs": [False, None],
    "top_logprobs": [0],
    "store": [False],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none"],
    "response_format": [{"type": "text"}],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0],
    "logit_bias": [None, {}],
    "metadata": [{}, {"task": "test"}],
    "service_tier": ["auto", "default"],
    "parallel_tool_calls": [True, False],
    "safety_identifier": ["someone"],
    "prompt_cache_key": ["key"],
    "prompt_cache_retention": ["24h"],
    "user": ["someone"],
    "n": [1],
    "stop": [[], "x", ["x"], None],
    "modalities": [["text"]],
    "reasoning_effort": ["none"],
    "verbosity": ["medium"],
    "stream_options": [{}, {"include_usage": False}],
}


def read(kind: type[Fields], values: dict) -> Fields:
    return parse_json(kind, json.dumps(values).encode())


def refused(kind: type[Fields], values: dict) -> ApiError:
    with pytest.raises(ApiError) as problem:
        read(kind, values)
    assert problem.value.status == 400 and "\n" not in problem.value.message
    return problem.value


@pytest.mark.parametrize("kind", OFFICIAL, ids=lambda kind: kind.__name__)
def test_every_field_of_the_official_client_is_known(kind):
    missing = set(OFFICIAL[kind].__annotations__) - set(kind.model_fields) - {"image"}  # a file of the form of edits
    assert missing == set()


@pytest.mark.parametrize("kind", OFFICIAL, ids=lambda kind: kind.__name__)
def test_null_is_absent_everywhere(kind):
    nulls = dict.fromkeys(kind.model_fields)
    assert read(kind, nulls | LEAST[kind]) == read(kind, LEAST[kind])
    for name in LEAST[kind]:
        assert refused(kind, LEAST[kind] | {name: None}).message == f"{name}: it is missing"


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_is_accepted(name):
    for value in NEUTRAL[name]:
        read(ChatRequest, LEAST[ChatRequest] | {name: value})
    assert not (set(NEUTRAL) - set(ChatRequest.model_fields))


@pytest.mark.parametrize(
    ("kind", "asked", "words"),
    [
        (ChatRequest, {"tools": [{"type": "function"}]}, "calls no tools"),
        (ChatRequest, {"tool_choice": "required"}, 'or send "none" or "auto"'),
        (ChatRequest, {"response_format": {"type": "json_object"}}, 'send {"type": "text"}, which asks for nothing'),
        (ChatRequest, {"logprobs": True}, "POST /v1/completions has them"),
        (ChatRequest, {"presence_penalty": 0.5}, "there are no penalties"),
        (ChatRequest, {"presence_penalty": False}, "there are no penalties"),
        (ChatRequest, {"store": True}, "not stored"),
        (ChatRequest, {"service_tier": "flex"}, "one tier"),
        (PictureRequest, {"quality": "hd"}, "one quality"),
        (PictureRequest, {"background": "transparent"}, "no transparent parts"),
        (EditRequest, {"input_fidelity": "high"}, "image_guidance"),
        (ResponseRequest, {"background": True}, "use stream"),
        (ResponseRequest, {"text": {"format": {"type": "json_schema"}}}, "not made to fit a form"),
        (ResponseRequest, {"conversation": "conv_1"}, "previous_response_id"),
        (CompletionRequest, {"suffix": "x"}, "never filled in"),
    ],
)
def test_what_is_not_there_is_refused_by_name_and_with_a_remedy(kind, asked, words):
    error = refused(kind, LEAST[kind] | asked)
    (name,) = asked
    assert error.message.startswith(name) and words in error.message and error.param.startswith(name)


@pytest.mark.parametrize(
    ("content", "param", "words"),
    [
        (
            [{"type": "image_url", "image_url": {"url": "u", "detail": "huge"}}],
            "content.0.image_url.detail",
            "'original'",
        ),
        ([{"type": "image_url", "image_url": "data:,"}], "content.0.image_url", 'like {"url": "data:image/png'),
        ([{"type": "input_text", "text": "x"}], "content.0.type", "belongs to POST /v1/responses"),
        ([{"type": "text", "text": 5}], "content.0.text", "is 5: it must be a text"),
        ([{"type": "text"}], "content.0.text", "it is missing"),
        ([{"text": "x"}], "content.0.type", "it is missing"),
        ([5], "content.0", "it must be an object"),
        (5, "content", "is 5: it must be a text"),
    ],
)
def test_wrong_parts_are_told_as_they_were_written(content, param, words):
    error = refused(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": content}]})
    assert error.param == f"messages.0.{param}" and words in error.message


def test_a_picture_that_another_said_is_told_as_that():
    said = {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    error = refused(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}, said]})
    assert error.message.endswith("'text', 'refusal' here; pictures stand in messages of the user")


@pytest.mark.parametrize(
    ("stop", "words"),
    [("", "at least 1 character"), (["x", ""], "stop.1 is"), (list("abcde"), "at most 4 items"), (5, "must be a text")],
)
def test_wrong_stops_are_told_as_they_were_written(stop, words):
    error = refused(ChatRequest, LEAST[ChatRequest] | {"stop": stop})
    assert words in error.message and "constrained" not in error.message


def test_the_known_values_of_the_official_client_are_told_apart():
    """Each value that the client's own types name for a field is accepted, or refused by the field's name."""
    for kind, official in OFFICIAL.items():
        for name, annotation in official.__annotations__.items():
            if name == "image":
                continue
            for value in literals(annotation, official):
                try:
                    read(kind, LEAST[kind] | {name: value})
                except ApiError as error:
                    assert error.param == name and error.code in ("unsupported_value", "invalid_value"), error.message


def literals(annotation: Any, official: type) -> list:
    """The values that a type names, wherever they stand in it."""
    import sys
    import typing

    module = vars(sys.modules[official.__module__])
    if isinstance(annotation, typing.ForwardRef):
        annotation = eval(annotation.__forward_arg__, {**vars(typing), **module})
    if get_origin(annotation) is typing.Literal:
        return list(get_args(annotation))
    inner = [one for one in get_args(annotation) if get_origin(one) in (typing.Literal, typing.Union)]
    return [value for one in inner for value in literals(one, official)]


def test_empty_fields_of_forms_are_absent():
    found = parse_form(EditRequest, {"prompt": "x", "n": "", "seed": "", "quality": "", "stream": "true", "mask": ""})
    assert found.n is None and found.stream is True
    with pytest.raises(ApiError, match="an edit has no mask"):
        parse_form(EditRequest, {"prompt": "x", "mask": "a file"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(st.data())
def test_any_value_of_any_field_is_read_or_refused_in_one_line(data):
    kind = data.draw(st.sampled_from(list(OFFICIAL)))
    name = data.draw(st.sampled_from(list(kind.model_fields)))
    try:
        read(kind, LEAST[kind] | {name: data.draw(JSON)})
    except ApiError as error:
        assert error.status == 400 and "\n" not in error.message and error.param.split(".")[0] == name
        assert "constrained" not in error.message and "Input should" not in error.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"null", b"[" * 5000, b"\xff", b'"\\ud800"', b"1" * 9999],
    ids=lambda body: str(body[:9]),
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ApiError) as problem:
        parse_json(ChatRequest, body)
    assert problem.value.status == 400
