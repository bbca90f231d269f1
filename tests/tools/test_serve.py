"""The server, asked by the official client: every answer is what the model itself makes of the request's seed."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from model.prompts import turn_ids
from pretrain.system.errors import UserError
from tests.tools.serving_process import data_uri, picture_file, pixels_of, serving
from tests.tools.tiny_export import CHATML, write_export
from tokenization.preprocess import open_image, preprocess
from tools import serve
from tools.export.folder import open_export
from tools.generation.batches import draw_batch, stop_ids, write_batch
from tools.generation.prompts import Request, Sampling, prompt_ids, sample_seed
from tools.serve import what_it_can
from tools.serving.shutdown import bind

DRAWING = Sampling(4.0, 0.99, 4096, 0.96, 0, 1.5)  # what the server does when a request does not say


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("serve") / "tiny", added=CHATML, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def export(folder):
    return open_export(folder)


@pytest.fixture(scope="module")
def served(commands, folder, tmp_path_factory):
    with serving(commands, folder, tmp_path_factory.mktemp("served")) as server:
        yield server


def user(*parts: str | bytes) -> dict:
    """A message of texts and picture files."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part)}}
        for part in parts
    ]
    return {"role": "user", "content": content}


def codes_of(export, data: bytes):
    return export.vq.encode([preprocess(open_image(data), export.vq.image_size)])[0].flatten()


def said(export, ids, seed: int, tokens: int, temperature: float = 1.0) -> str:
    """The text that the model itself writes after a prompt."""
    sampling = Sampling(4.0, 1.0, 0, 1.0, 0, text_temperature=temperature, max_new_tokens=tokens)
    return write_batch(export, [ids], [sample_seed(seed, 0, 0)], sampling)[0]


def drawn(export, prompt: str, seed: int, sample: int = 0, sources=(), sampling: Sampling = DRAWING) -> np.ndarray:
    """The pixels that the model itself draws."""
    task = "edit" if sources else "draw"
    ids, image_only = prompt_ids(export, task, Request(prompt), [codes_of(export, data) for data in sources])
    seeds = [sample_seed(seed, 0, sample)]
    return np.asarray(draw_batch(export, [ids], seeds, sampling, [image_only] if sources else None)[0])


def test_models_are_listed(served):
    (model,) = served.client.models.list().data
    assert model.id == served.model == served.client.models.retrieve("tiny").id
    assert model.uni_x["size"] == "8x8" and served.get("/health")[1] == {"status": "ok", "model": "tiny", "requests": 0}
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        served.client.models.retrieve("other")


def test_a_chat_with_a_picture(served, export):
    data = picture_file()
    ask = {"model": "tiny", "messages": [user("What is it?", data)], "max_tokens": 12, "seed": 7}
    found = served.client.chat.completions.create(**ask)
    ids = [*turn_ids([], "What is it?", export.encode, export.markup, export.vocabulary)]
    assert found.usage.prompt_tokens == len(ids) + 16 + 2 and found.usage.completion_tokens <= 12  # 4 x 4 codes
    assert found.seed == 7 and found.choices[0].message.role == "assistant"
    stream = served.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == found.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == found.choices[0].finish_reason
    assert chunks[-1].usage == found.usage and chunks[-1].choices == []
    # the picture before the text, as in training, is what the other functions make
    asked = {**ask, "messages": [user(data, "What is it?")]}
    ids = turn_ids([codes_of(export, data)], "What is it?", export.encode, export.markup, export.vocabulary)
    assert served.client.chat.completions.create(**asked).choices[0].message.content == said(export, ids, 7, 12)


def test_a_conversation_is_what_the_processor_makes_of_it(served, export, folder):
    from model.hf.processing_uni_x import UniXProcessor

    data = picture_file(3)
    messages = [{"role": "system", "content": "Be brief."}, user(data, "What?")]
    messages += [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Sure?"}]
    found = served.client.chat.completions.create(model="tiny", messages=messages, max_tokens=9, temperature=0)
    theirs = [dict(message) for message in messages]
    image = {"type": "image", "image": Image.open(io.BytesIO(data))}
    theirs[1] = {"role": "user", "content": [image, {"type": "text", "text": "What?"}]}
    ids = UniXProcessor.from_pretrained(folder).apply_chat_template(theirs, add_generation_prompt=True)["input_ids"][0]
    assert found.usage.prompt_tokens == len(ids)
    assert found.choices[0].message.content == said(export, ids, 0, 9, temperature=0.0)


def test_a_text_ends_where_it_should(served, export):
    ask = {"model": "tiny", "messages": [user("Go on")], "max_tokens": 60, "seed": 1}
    whole = served.client.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "length" and len(whole.message.content) > 20
    stop = whole.message.content[10:12]
    cut = served.client.chat.completions.create(**ask, stop=[stop, "never said by anyone"])
    text = whole.message.content
    assert cut.choices[0].message.content == text[: text.index(stop)].strip()
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens < 60
    streamed = served.client.chat.completions.create(**ask, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == cut.choices[0].message.content
    assert set(stop_ids(export)) == {export.vocabulary.eos_id, *export.markup("<|im_end|>")}


def test_pictures_are_drawn(served, export):
    asked = {"prompt": "a cat", "n": 2, "size": "8x8", "response_format": "b64_json"}
    found = served.client.images.generate(**asked, extra_body={"seed": 5})
    assert found.usage.output_tokens == 32 and found.size == "8x8" and found.seed == 5
    for sample, picture in enumerate(found.data):
        assert np.array_equal(pixels_of(picture.b64_json), drawn(export, "a cat", 5, sample))
    sampling = Sampling(2.0, 0.7, 8, 0.9, 0)
    own = {"seed": 5, "guidance": 2, "temperature": 0.7, "top_k": 8, "top_p": 0.9}
    other = served.client.images.generate(prompt="a cat", extra_body=own).data[0].b64_json
    assert np.array_equal(pixels_of(other), drawn(export, "a cat", 5, sampling=sampling))
    unseeded = [served.client.images.generate(prompt="a cat") for _ in range(2)]
    assert unseeded[0].seed != unseeded[1].seed and unseeded[0].data[0].b64_json != unseeded[1].data[0].b64_json
    again = served.client.images.generate(prompt="a cat", extra_body={"seed": unseeded[0].seed})
    assert again.data[0].b64_json == unseeded[0].data[0].b64_json


def test_half_drawn_pictures_are_shown(served):
    asked = {"prompt": "a cat", "n": 2, "extra_body": {"seed": 5}}
    events = list(served.client.images.generate(**asked, stream=True, partial_images=3))
    kinds = [(event.type.removeprefix("image_generation."), event.index) for event in events]
    assert kinds == [("partial_image", 0), ("partial_image", 1)] * 3 + [("completed", 0), ("completed", 1)]
    assert [event.partial_image_index for event in events[:6:2]] == [0, 1, 2]
    whole = served.client.images.generate(**asked).data
    assert [event.b64_json for event in events[6:]] == [picture.b64_json for picture in whole]
    half, last = pixels_of(events[2].b64_json), pixels_of(events[6].b64_json)
    assert (half[4:] == 128).all() and not (half[:4] == 128).all() and not (last == 128).all()


def test_pictures_are_edited(served, export):
    sources = [picture_file(1), picture_file(2, kind="JPEG")]
    body = {"seed": 9, "guidance": 3, "image_guidance": 2}
    one = served.client.images.edit(image=("a.png", sources[0]), prompt="redder", n=2, extra_body=body)
    sampling = Sampling(3.0, 0.99, 4096, 0.96, 0, 2.0)
    for sample, picture in enumerate(one.data):
        assert np.array_equal(pixels_of(picture.b64_json), drawn(export, "redder", 9, sample, sources[:1], sampling))
    assert one.usage.input_tokens_details.image_tokens == 16
    files = [("a.png", sources[0]), ("b.jpg", sources[1])]
    stream = served.client.images.edit(
        image=files, prompt="both", stream=True, partial_images=1, extra_body={"seed": 2}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert np.array_equal(pixels_of(events[1].b64_json), drawn(export, "both", 2, sources=sources))


def test_answers_of_many_clients_are_not_crossed(served, export):
    """Eight clients at once; what each gets is its own, whatever went into a batch with it."""
    client, data = served.client, picture_file(4)

    def ask(number: int) -> tuple[object, object]:
        seed, prompt = 100 + number, f"number {number}"
        if number % 3 == 0:
            answer = client.images.generate(prompt=prompt, extra_body={"seed": seed})
            return pixels_of(answer.data[0].b64_json), drawn(export, prompt, seed)
        if number % 3 == 1:
            answer = client.images.edit(image=("a.png", data), prompt=prompt, extra_body={"seed": seed})
            return pixels_of(answer.data[0].b64_json), drawn(export, prompt, seed, sources=[data])
        answer = client.chat.completions.create(model="tiny", messages=[user(data, prompt)], max_tokens=20, seed=seed)
        ids = turn_ids([codes_of(export, data)], prompt, export.encode, export.markup, export.vocabulary)
        return answer.choices[0].message.content, said(export, ids, seed, 20)

    served.brake.touch()  # so that they wait for each other
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(24)]
        served.wait_until(lambda: served.requests() == 8)
        served.brake.unlink()
        pairs = [one.result() for one in asked]
    assert len(pairs) == 24
    for found, expected in pairs:
        assert np.array_equal(found, expected)
    assert served.requests() == 0


def test_a_plain_model_captions_and_goes_on(commands, folder, export, tmp_path):
    data = picture_file()
    with serving(commands, folder, tmp_path, "--chat-format", "plain", "--name", "plain") as server:
        create = server.client.chat.completions.create
        asked = {"model": "plain", "max_tokens": 10, "seed": 3}
        for text in ("", "What colour?"):
            ids, _ = prompt_ids(export, "caption", Request(text), [codes_of(export, data)])
            parts = [data, text] if text else [data]
            found = create(**asked, messages=[user(*parts)]).choices[0].message.content
            assert found == said(export, ids, 3, 10)
        found = create(**asked, messages=[user("Once upon")]).choices[0].message.content
        assert found == said(export, export.encode("Once upon"), 3, 10)
        # a conversation is one text, each message a line, so that what was said before counts
        turns = [
            {"role": "system", "content": "Be brief."},
            user("a"),
            {"role": "assistant", "content": "b"},
            user("c"),
        ]
        found = create(**asked, messages=turns).choices[0].message.content
        assert found == said(export, export.encode("Be brief.\na\nb\nc"), 3, 10)
        found = create(**asked, messages=[user("a"), user(data)]).choices[0].message.content
        ids, _ = prompt_ids(export, "caption", Request(""), [codes_of(export, data)])
        assert found == said(export, [*export.encode("a\n"), *ids], 3, 10)
        own = server.client.models.list().data[0].uni_x
        assert own["chat_format"] == "plain" and own["skills"] == ["draw", "caption"]


@pytest.mark.parametrize(
    "recorded, chat_format, asked, turns, skills",
    [
        (None, None, None, True, ("draw", "edit", "caption", "chat")),
        (None, "plain", None, False, ("draw", "caption")),
        (["caption", "draw"], None, None, False, ["draw", "caption"]),
        (["caption", "draw", "edit"], None, None, False, ["draw", "edit", "caption"]),
        (["chat", "draw"], None, None, True, ["draw", "chat"]),
        (["caption", "draw"], "turns", None, True, ["draw", "caption"]),
        (["chat"], None, ["edit"], True, ["edit"]),
        (["of another version"], None, None, False, []),
        (["of another version", "caption"], None, None, False, ["caption"]),
        ([], None, None, False, []),
        ([], "turns", None, True, []),
        ([], None, ["draw"], False, ["draw"]),
    ],
)
def test_the_page_offers_what_the_export_says_that_its_data_taught(recorded, chat_format, asked, turns, skills):
    assert what_it_can(recorded, chat_format, asked) == (turns, skills)


def test_a_skill_that_is_not_known_is_told(capsys):
    assert what_it_can(["draw", "sing", "walk"], None, None) == (False, ["draw"])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "skills has 'sing', 'walk', which this release does not know" in told
    what_it_can(["draw"], None, None)
    assert not capsys.readouterr().err


def test_what_cannot_be_served_is_refused_at_once(commands, folder, served, tmp_path, capsys):
    from tests.commands import assert_refused

    assert_refused(commands.run("tools/serve.py", "--model", tmp_path / "none"), "no model folder")
    port = served.url.rpartition(":")[2]
    done = commands.run("tools/serve.py", "--model", folder, "--port", port)
    assert_refused(done, f"--port {port} cannot be used (Address already in use): give another --port")
    assert_refused(commands.run("tools/serve.py", "--model", folder, "--port", "99999"), "--port 99999", "up to 65535")
    for host in ("192.0.2.1", "a" * 70 + ".example", "a..b"):  # not this machine's, and no names
        with pytest.raises(UserError, match=r"--host .* cannot be used \(.*\): give another --host"):
            bind(host, 0)
    with pytest.raises(SystemExit):
        serve.main(["--model", str(folder), "--top-p", "2"])
    assert "not above 0 and at most 1" in capsys.readouterr().err


def test_the_documented_client_works(served, tmp_path):
    """In a plain process that knows nothing of this project."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    code = code.replace("http://127.0.0.1:8000", served.url) + "\nprint(len(edited.data))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count("image_generation.partial_image") == 4 and said.count("image_generation.completed") == 1
    assert (tmp_path / "heart.png").read_bytes().startswith(b"\x89PNG") and said.split("\n")[-2].endswith("1")
