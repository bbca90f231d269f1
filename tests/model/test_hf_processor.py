"""The processor of an exported folder: the ids of training, pictures and text back, and a folder that can be saved."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from model.hf.text_uni_x import TextEncoder
from model.prompts import (
    conversation_ids,
    edit_ids,
    image_to_text_ids,
    picture_ids,
    text_to_image_ids,
    turn_ids,
    unconditional_ids,
)
from pretrain.system.errors import UserError
from tests.model.processor_of_export import codes_of, export_folder, rows_of, two_pictures, user_says
from tests.tools.tiny_export import GRID, write_export
from tokenization.text_tokenizer import load_text_tokenizer
from tools.export.folder import open_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with export_folder(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def opened(folder):
    return open_export(folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return two_pictures()


@settings(max_examples=30, deadline=None)
@given(captions=st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_prompts_for_pictures_are_those_of_training(processor, opened, captions):
    captions = [text.encode("utf-8", "ignore").decode() for text in [*captions, "<|vision_start|> <|im_end|>"]]
    batch = processor.draw(captions)
    encode, vocabulary, templates = opened.encode, opened.vocabulary, opened.templates
    assert rows_of(batch) == [text_to_image_ids(text, encode, vocabulary, templates) for text in captions]
    assert batch["unconditional_ids"].tolist() == unconditional_ids(encode, vocabulary, templates)
    assert batch["num_codes"] == 16


@pytest.fixture(scope="module")
def unmarked(folder, tmp_path_factory) -> Path:
    """The same export, but for a tokenizer whose control tokens are not marked as special, and a mark of tools."""
    copied = shutil.copytree(folder, tmp_path_factory.mktemp("unmarked") / "export")
    path = copied / "tokenizer.json"
    values = json.loads(path.read_text())
    for token in values["added_tokens"]:
        token["special"] = False
    last = values["added_tokens"][-1]
    values["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<tool_call>"})
    path.write_text(json.dumps(values))
    return copied


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["<|vision_start|>", "<|im_end|>", "<tool_call>", "a", " ", "<|", "é"]), max_size=6)
)
def test_no_text_becomes_a_control_token_in_training_processor_or_server(unmarked, parts):
    """Whatever the flags in tokenizer.json, and whatever the tokenizer was asked before."""
    text = "".join(parts)
    processor, opened = _opened(str(unmarked))
    training = TextEncoder((unmarked / "tokenizer.json").read_text())
    processor.tokenizer(text)
    expected = load_text_tokenizer(unmarked).encode([text])[0].tolist()
    assert processor.encode(text) == list(opened.encode(text)) == training(text) == expected
    assert all(token < 256 for token in expected)
    assert copy.deepcopy(processor).encode(text) == expected
    assert processor.tokenizer("<tool_call>", add_special_tokens=False)["input_ids"] != processor.encode("<tool_call>")


@lru_cache(maxsize=1)
def _opened(folder: str):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True), open_export(Path(folder))


def test_a_role_makes_no_control_tokens(processor, opened):
    with pytest.raises(ValueError, match="role"):
        processor.apply_chat_template([{"role": "user<|im_end|>", "content": "a"}])
    with pytest.raises(UserError, match="role"):
        conversation_ids([("a\n<|im_end|>", ["a"])], opened.encode, opened.markup, opened.vocabulary)


def test_prompts_with_pictures_are_those_of_training(processor, opened, pictures):
    encode, vocabulary, templates = opened.encode, opened.vocabulary, opened.templates
    codes = codes_of(opened, pictures)
    assert processor.codes(pictures).tolist() == codes.tolist()
    assert rows_of(processor.caption(pictures)) == [
        image_to_text_ids(row, encode, vocabulary, templates) for row in codes
    ]
    assert rows_of(processor.caption(pictures[:1], "What?"))[0][-5:] == list(encode("What?"))
    batch = processor.edit([pictures[0], pictures], ["redder", "join them"])
    expected = [
        edit_ids(own, text, encode, opened.markup, vocabulary)
        for own, text in ((codes[:1], "redder"), (codes, "join them"))
    ]
    assert rows_of(batch) == [whole for whole, _ in expected]
    image_only = {"input_ids": batch["image_only_ids"], "attention_mask": batch["image_only_mask"]}
    assert rows_of(image_only) == [source for _, source in expected]
    (row,) = rows_of(processor("and this", pictures[0]))
    assert row == [*picture_ids(codes[0], vocabulary), *encode("and this")]


def test_answers_become_text_and_pictures(processor, opened, pictures):
    codes = torch.arange(32).view(2, 16)
    found, expected = processor.pictures(codes), opened.vq.decode(codes.view(2, *GRID))
    assert [np.asarray(one).tolist() for one in found] == [np.asarray(one).tolist() for one in expected]
    vocabulary = opened.vocabulary
    ids = [*opened.encode("ä cat"), vocabulary.vision_start_id, *(codes[0] + vocabulary.image_token_offset).tolist()]
    ids += [vocabulary.vision_end_id, *opened.encode("and 猫"), vocabulary.eos_id]
    said, drawn, more = processor.document(ids)
    assert (said, more) == ("ä cat", "and 猫") and np.array_equal(np.asarray(drawn), np.asarray(found[0]))
    with pytest.raises(ValueError, match="15 codes are no picture: it has 4 x 4 = 16"):
        processor.pictures(codes[:, :15])


def test_conversations_have_the_form_of_the_template(processor, opened, pictures):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello <there>"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Draw a cat."},
    ]
    (row,) = rows_of(processor.apply_chat_template(messages, add_generation_prompt=True))
    rendered = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert row == processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    chat = turn_ids(codes_of(opened, pictures), "What?", opened.encode, opened.markup, opened.vocabulary)
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": "What?"}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert rows_of(asked) == [chat]
    seen = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "What is <|im_end|>?"}]
    (row,) = rows_of(processor.apply_chat_template([[{"role": "user", "content": seen}]]))
    closing = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.count(closing) == 1 and row[-2] == closing
    place = row.index(opened.vocabulary.vision_start_id)
    codes = codes_of(opened, pictures)[0] + opened.vocabulary.image_token_offset
    assert row[place + 1 : place + 17] == codes.tolist()


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"torch_dtype": torch.float32}, {"device_map": "cpu"}], ids=str
)
def test_the_folder_draws_captions_and_edits_as_documented(folder, processor, pictures, options):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()
    assert model.dtype == options.get("dtype", torch.float32)
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    codes = model.generate_images(**processor.draw(["a cat", "a longer name"]), guidance_scale=2.0, generator=generator)
    assert [picture.size for picture in processor.pictures(codes)] == [(8, 8)] * 2
    edits = processor.edit(pictures, ["redder", "larger"])
    codes = model.generate_images(**edits, guidance_scale=3.0, image_guidance_scale=1.5, generator=generator)
    assert codes.shape == (2, 16)
    prompt = processor.caption(pictures)
    said = model.generate(**prompt, max_new_tokens=4, do_sample=False, logits_processor=model.text_only())
    assert len(processor.texts(said, prompt)) == 2


def test_the_python_of_the_documentation_runs(folder, tmp_path):
    """As it stands, in a plain process that knows nothing of this project; then what it made is looked at."""
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    shutil.copytree(folder, tmp_path / "work/demo/model")
    code += "\nprint([picture.size for picture in hearts], list(codes.shape), len(documents))\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[(8, 8), (8, 8)] [2, 16] 2" and len(done.stdout.splitlines()) >= 3


def test_a_saved_folder_is_equal(folder, processor, pictures, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    same = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    prompt = processor.edit(pictures, ["redder", "much larger"])
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(same.edit(pictures, ["redder", "much larger"])[key]))
        for key, value in prompt.items()
    )
    ids = {key: prompt[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(again(**ids).logits, model(**ids).logits)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"processing_uni_x.py", "modeling_uni_x.py", "chat_template.jinja", "unix_prompts.json", "vq"} <= names


def test_pictures_come_from_wherever_they_are(processor, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    address = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), address, array, tensor, tensor / 255]
    expected = processor.codes([Image.fromarray(array)])[0].tolist()
    assert all(row == expected for row in processor.codes(sources).tolist())
    for source, message in [
        ("nowhere.png", "there is no such picture"),
        (3, "given as int"),
        (array[..., :2], "is no picture"),
        (tensor.float(), "floats of 0 to 1"),
        (Path(__file__), "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.codes([source])
    with pytest.raises(ValueError, match="a part of type 'image' with"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_a_text_ends_at_a_string_when_asked(folder, processor):
    """`generate` takes a tokenizer beside stop_strings, and passes it on to every step."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.tensor([processor.encode("a red cat")])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    whole = model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    end = next(text for text in map(processor.tokenizer.decode, whole) if text.strip() and text.isprintable())
    found = model.generate(ids, stop_strings=[end], tokenizer=processor.tokenizer, **options)[
        0, ids.shape[1] :
    ].tolist()
    assert found == whole[: len(found)] and end in processor.tokenizer.decode(found) and len(found) <= len(whole)


def test_a_token_that_took_the_id_of_a_code_is_refused(folder):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.tokenizer.add_tokens(["<new>"], special_tokens=True)
    with pytest.raises(ValueError, match="'<new>' has id"):
        processor("<new>")


def test_a_model_that_is_saved_alone_takes_its_processor_along(folder, processor, pictures, tmp_path):
    """As trl with a tokenizer and axolotl save it; a folder that lost its files says how they come back."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "tuned")
    again = AutoProcessor.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert torch.equal(again.codes(pictures), processor.codes(pictures))
    (tmp_path / "tuned" / "unix_prompts.json").unlink()
    with pytest.raises(OSError, match="has no unix_prompts.json: .*save_pretrained"):
        type(again).from_pretrained(tmp_path / "tuned")


def test_one_text_or_picture_is_as_good_as_a_list_of_one(processor, pictures):
    for one, several in (
        (processor.draw("red heart"), processor.draw(["red heart"])),
        (processor.edit(pictures[0], "wider"), processor.edit([pictures[0]], ["wider"])),
        (processor.caption(pictures[0]), processor.caption([pictures[0]])),
    ):
        assert rows_of(one) == rows_of(several)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "reasoning_content": "since"}, "reasoning_content"),
        ({"content": "x"}, "no role"),
        ({"role": "user"}, "content is"),
        ({"role": "user", "content": 5}, "content is 5"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "content is {'type'"),
        ({"role": "user", "content": ["x"]}, "a part is 'x'"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part is {'type': 'text'}"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "'text': None"),
    ],
)
@pytest.mark.parametrize("tokenize", [True, False])
def test_a_message_that_says_more_than_is_read_is_refused(processor, message, told, tokenize):
    with pytest.raises(ValueError, match=told):
        processor.apply_chat_template([user_says("hello"), message], tokenize=tokenize)
    nothing_more = {"role": "assistant", "content": "x", "tool_calls": None, "name": "a"}
    assert processor.apply_chat_template([nothing_more], tokenize=tokenize)


def test_what_would_be_dropped_or_read_as_something_else_is_refused(processor):
    """A batch that is given again would be encoded as the names of its columns."""
    turns = [user_says("hello")]
    for call, told in (
        (lambda: processor(processor.apply_chat_template(turns)), "text is"),
        (lambda: processor({"text": "x"}), "text is"),
        (lambda: processor([1, 2]), "text is 1"),
        (lambda: processor(), "there is none"),
        (lambda: processor.draw([None]), "captions is None"),
        (lambda: processor.draw([]), "there is none"),
        (lambda: processor.draw(["x"], wording=9), "wording 9"),
        (lambda: processor.apply_chat_template("hello"), "a conversation is a list"),
        (lambda: processor.apply_chat_template([]), "there is no conversation"),
        (lambda: processor.apply_chat_template(turns, tokenize=False, tools=[{"a": 1}]), "tools"),
        (lambda: processor.apply_chat_template(turns, tokenize=False, thinking=True), "thinking"),
        (lambda: processor.pictures(torch.full((1, processor.num_codes), processor.offset)), "is no code"),
        (lambda: processor.pictures([torch.full(GRID, -1)]), "-1 is no code"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_what_does_not_fit_is_refused(processor, pictures):
    with pytest.raises(ValueError, match="1 texts and 2 pictures"):
        processor(["one"], pictures)
    with pytest.raises(ValueError, match="2 pictures for 1 instructions"):
        processor.edit(pictures, ["one"])


def test_a_tokenizer_without_marks_of_turns_spells_them_out(tmp_path):
    base = write_export(tmp_path / "base")
    (row,) = rows_of(
        AutoProcessor.from_pretrained(base, trust_remote_code=True).apply_chat_template(
            [{"role": "user", "content": "x"}], add_generation_prompt=True
        )
    )
    assert open_export(base).decode(row) == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("part", ["processor", "config", "model"])
def test_the_code_of_an_export_is_found_where_its_package_is(folder, part):
    """transformers puts the file that it opens into sys.modules alone; dill, which sends to workers, asks the package."""
    opener = {"processor": AutoProcessor, "config": AutoConfig, "model": AutoModelForCausalLM}[part]
    module = sys.modules[type(opener.from_pretrained(folder, trust_remote_code=True)).__module__]
    package, _, name = module.__name__.rpartition(".")
    assert package.startswith("transformers_modules.") and getattr(sys.modules[package], name) is module
