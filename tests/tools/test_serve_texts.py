"""Completions and responses, asked by the official client, and held against the model itself."""

from __future__ import annotations

import json
import math

import openai
import pytest
import torch

from model.prompts import conversation_ids
from tests.tools.serving_process import data_uri, picture_file, serving
from tests.tools.tiny_export import CHATML, write_export
from tools.export.folder import open_export
from tools.generation.batches import write_batch
from tools.generation.prompts import Sampling, sample_seed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("texts") / "tiny", added=CHATML, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def export(folder):
    return open_export(folder)


@pytest.fixture(scope="module")
def served(commands, folder, tmp_path_factory):
    with serving(commands, folder, tmp_path_factory.mktemp("served"), "--name", "tiny", "--name", "other") as server:
        yield server


def said(export, ids, seed: int, tokens: int, temperature: float = 1.0, sample: int = 0) -> str:
    sampling = Sampling(4.0, 1.0, 0, 1.0, 0, text_temperature=temperature, max_new_tokens=tokens)
    return write_batch(export, [ids], [sample_seed(seed, 0, sample)], sampling)[0]


def turns(export, *pairs: tuple[str, str]) -> list[int]:
    return conversation_ids([(role, [text]) for role, text in pairs], export.encode, export.markup, export.vocabulary)


def test_messages_that_were_said_are_taken_back(served, export):
    hello = {"role": "user", "content": "Hello"}
    asked = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    first = served.client.chat.completions.create(messages=[hello], **asked).choices[0].message
    assert first.content == said(export, turns(export, ("user", "Hello")), 0, 9, 0.0)
    ids = turns(export, ("user", "Hello"), ("assistant", first.content), ("user", "And?"))
    expected = said(export, ids, 0, 9, 0.0)
    more = {"tool_calls": None, "function_call": None, "reasoning_content": "hm", "provider_specific_fields": {}}
    for message in (first, first.model_dump(), first.model_dump() | more):
        found = served.client.chat.completions.create(
            messages=[hello, message, {"role": "user", "content": "And?"}], **asked
        )
        assert found.choices[0].message.content == expected
    silent = [hello, {"role": "assistant", "content": None}, {"role": "user", "content": "And?"}]
    assert served.client.chat.completions.create(messages=silent, **asked).choices[0].message.content is not None


def test_several_answers_of_one_conversation(served, export):
    asked = {"model": "other", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 9, "seed": 4, "n": 3}
    found = served.client.chat.completions.create(**asked)
    ids = turns(export, ("user", "Go"))
    expected = [said(export, ids, 4, 9, sample=number) for number in range(3)]
    assert [choice.message.content for choice in found.choices] == expected and len(set(expected)) > 1
    assert found.model == "tiny" and found.usage.prompt_tokens == len(ids)
    streamed = ["", "", ""]
    for chunk in served.client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == expected


def test_completions_go_on(served, export):
    create = served.client.completions.create
    ids = list(export.encode("Once upon"))
    found = create(model="tiny", prompt="Once upon", max_tokens=12, seed=3, echo=True).choices[0]
    assert found.text.strip() == ("Once upon" + found.text[9:]).strip() and found.finish_reason == "length"
    assert found.text[9:].strip() == said(export, ids, 3, 12)
    by_ids = create(model="tiny", prompt=[ids, ids], max_tokens=12, seed=3)
    assert [choice.text for choice in by_ids.choices] == [found.text[9:]] * 2
    assert by_ids.usage.prompt_tokens == 2 * len(ids) and by_ids.usage.completion_tokens == 24
    stream = create(model="tiny", prompt="Once upon", max_tokens=12, seed=3, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == found.text


def test_likelihoods_are_the_models_own(served, export):
    ids = list(export.encode("The sky is blue"))
    with torch.no_grad():
        logprobs = export.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    create = served.client.completions.create
    asked = {"model": "tiny", "prompt": "The sky is blue", "logprobs": 3, "echo": True, "temperature": 0}
    for tokens in (0, 1):
        found = create(**asked, max_tokens=tokens).choices[0]
        own = found.logprobs
        assert len(own.tokens) == len(ids) + tokens and "".join(own.tokens[: len(ids)]) == "The sky is blue"
        assert own.token_logprobs[0] is None and own.top_logprobs[0] is None
        for place in range(1, len(ids)):
            assert math.isclose(own.token_logprobs[place], logprobs[place - 1, ids[place]].item(), abs_tol=1e-4)
            best = logprobs[place - 1].topk(3).values.tolist()
            assert sorted(own.top_logprobs[place].values(), reverse=True) == pytest.approx(best, abs=1e-4)
        assert own.text_offset[: len(ids)] == list(range(len(ids)))
    # without echo: those of the answer only
    found = create(**asked | {"echo": False}, max_tokens=5).choices[0].logprobs
    assert (
        len(found.tokens) == 5 and found.text_offset[0] == len("The sky is blue") and None not in found.token_logprobs
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": ""}, "give some text"),
        ({"prompt": [10**6]}, "not one of the model's"),
        ({"prompt": ["x"] * 65}, "limit is 64"),
        ({"max_tokens": 0}, "nothing would come back"),
        ({"stream": True, "logprobs": 1}, "leave out stream"),
        ({"stream": True, "prompt": ["x", "y"]}, "one prompt"),
        ({"best_of": 4}, "use n"),
        ({"n": 5}, "limit is 4"),
    ],
)
def test_completions_that_are_not_made_are_refused(served, asked, words):
    with pytest.raises(openai.BadRequestError, match=words):
        served.client.completions.create(**{"model": "tiny", "prompt": "x", **asked})


def test_responses_and_what_they_go_on_from(served, export):
    create = served.client.responses.create
    asked = {"model": "tiny", "max_output_tokens": 9, "temperature": 0}
    first = create(input="Hello", instructions="Be brief.", **asked)
    expected = said(export, turns(export, ("system", "Be brief."), ("user", "Hello")), 0, 9, 0.0)
    assert first.output_text == expected and first.status == "incomplete"
    assert first.incomplete_details.reason == "max_output_tokens" and first.usage.output_tokens == 9
    ids = turns(export, ("user", "Hello"), ("assistant", expected), ("user", "And?"))
    again, user = said(export, ids, 0, 9, 0.0), {"role": "user", "content": [{"type": "input_text", "text": "And?"}]}
    reference = {"type": "item_reference", "id": first.output[0].id}
    hello = {"role": "user", "content": "Hello"}
    for asked_again in (
        {"input": "And?", "previous_response_id": first.id},
        {"input": [hello, reference, user]},
        {"input": [hello, first.output[0], user]},
        {"input": [hello, first.output[0].model_dump(), {"type": "reasoning", "id": "r", "summary": []}, user]},
    ):
        assert create(**asked_again, **asked).output_text == again
    assert served.client.responses.retrieve(first.id).output_text == expected
    served.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="kept for 60 minutes"):
        create(input="And?", previous_response_id=first.id, **asked)
    unkept = create(input="Hello", store=False, **asked)
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(unkept.id)


def test_a_response_and_its_message_are_not_taken_for_each_other(served):
    """Of a response with a picture as an item, the picture was missing."""
    picture = {"type": "input_image", "image_url": data_uri(picture_file())}
    body = {"model": "tiny", "max_output_tokens": 4, "input": [{"role": "user", "content": [picture]}]}
    first = served.post("/v1/responses", json.dumps(body).encode())[1]
    item, user = {"type": "item_reference", "id": first["id"]}, {"role": "user", "content": "x"}
    status, found, _ = served.post("/v1/responses", json.dumps({**body, "input": [item, user]}).encode())
    assert status == 400 and "which is a response: give it as previous_response_id" in found["error"]["message"]
    message = first["output"][0]["id"]
    status, found, _ = served.get(f"/v1/responses/{message}")
    assert status == 400 and "which is a message of a response" in found["error"]["message"]
    status, found, _ = served.post("/v1/responses", json.dumps({**body, "previous_response_id": message}).encode())
    assert status == 400 and found["error"]["param"] == "previous_response_id"


def test_responses_are_streamed(served):
    asked = {"model": "tiny", "max_output_tokens": 12, "seed": 5}
    parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": data_uri(picture_file())}]
    body = {**asked, "input": [{"role": "user", "content": parts}]}
    status, whole, _ = served.post("/v1/responses", json.dumps(body).encode())
    assert status == 200 and whole["usage"]["input_tokens"] > 16
    stream = served.client.responses.create(
        model="tiny", input=body["input"], max_output_tokens=12, stream=True, extra_body={"seed": 5}
    )
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-1].response.output_text == whole["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"input": []}, "give a text or a message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "image_url: it is missing"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "POST /v1/chat/completions"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "calls no tools"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens is 1000000"),
    ],
)
def test_responses_that_are_not_made_are_refused(served, asked, words):
    with pytest.raises(openai.BadRequestError, match=words):
        served.client.responses.create(**{"model": "tiny", **asked})
