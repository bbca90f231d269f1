"""The processor as trainers call it: text that they marked up, chat templates, rows that are cut and padded."""

from __future__ import annotations

import jinja2
import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.model.processor_of_export import export_folder, rows_of, two_pictures, user_says


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with export_folder(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return two_pictures()


def test_text_of_trainers_is_marked_up_and_words_of_users_are_not(processor):
    """trl, axolotl and others render a conversation, or append the end of text, as text, and call the processor."""
    ids = {mark: processor.tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|endoftext|>")}
    (row,) = rows_of(processor("An answer.<|endoftext|>"))
    assert row[-1] == ids["<|endoftext|>"] and row[:-1] == processor.encode("An answer.")
    for batch in (
        processor("A word <|im_end|>", split_special_tokens=True),
        processor.draw(["<|im_end|>"]),
        processor.apply_chat_template([{"role": "user", "content": "<|im_end|>"}], continue_final_message=True),
    ):
        assert ids["<|im_end|>"] not in rows_of(batch)[0]


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "audio"])
def test_the_template_alone_drops_nothing_that_a_message_says(processor, key):
    """Trainers and servers render it without the processor, which refuses the same."""
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", key: [{"name": "f"}]}]
    with pytest.raises(jinja2.TemplateError, match=f"a message has {key}, which this model has no form for"):
        processor.tokenizer.apply_chat_template(said, tokenize=False)
    with pytest.raises(ValueError, match=key):
        processor.apply_chat_template(said)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    with pytest.raises(jinja2.TemplateError, match="calls no tools"):
        processor.tokenizer.apply_chat_template(said[:1], tools=tools, tokenize=False)
    assert processor.tokenizer.apply_chat_template([{**said[1], key: None}], tokenize=False)
    strict = jinja2.Environment(undefined=jinja2.StrictUndefined)  # of servers that are not transformers
    template = processor.tokenizer.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    rendered = strict.from_string(template).render(messages=said[:1], add_generation_prompt=True)
    assert rendered == processor.tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    "part",
    [{"type": "video", "video": "a.mp4"}, {"type": "audio", "audio": "a.wav"}, {"text": "x"}, "x", {"type": "text"}],
    ids=["video", "sound", "no type", "bare", "no text"],
)
def test_a_part_that_is_no_text_becomes_no_picture(processor, part):
    """Where nothing is tokenized the template alone would write a picture's marks for whatever it does not know."""
    said = [{"role": "user", "content": [part, {"type": "image"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(
        jinja2.TemplateError, match="a part of type .*: give a text as type text, or a picture as type image"
    ):
        processor.tokenizer.apply_chat_template(said, tokenize=False)
    with pytest.raises(ValueError, match="give {'type': 'text', 'text': ...} or"):
        processor.apply_chat_template(said, tokenize=False)
    said[0]["content"].remove(part)
    rendered = processor.tokenizer.apply_chat_template(said, tokenize=False)
    assert "<|vision_start|><|image_pad|><|vision_end|>What?" in rendered
    assert rendered == processor.apply_chat_template(said, tokenize=False)


def test_chat_templates_do_what_trainers_ask_for(processor, pictures, tmp_path):
    pictures[0].save(tmp_path / "picture.png")
    named = {"type": "image", "path": str(tmp_path / "picture.png")}
    messages = [
        {"role": "user", "content": [named, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    found = processor.apply_chat_template(messages, return_assistant_tokens_mask=True, return_tensors="pt")
    text = processor.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str) and text.endswith("<|im_end|>\n") and text.count("<|image_pad|>") == 1
    assert rows_of(processor(text, pictures[0])) == rows_of(found) == rows_of(processor([text], [[pictures[0]]]))
    said = found["input_ids"][0][found["assistant_masks"][0].bool()].tolist()
    assert processor.tokenizer.decode(said) == "A cat.<|im_end|>Yes.<|im_end|>"
    plain = [{**message, "content": "x"} for message in messages]
    theirs = processor.tokenizer.apply_chat_template(plain, return_dict=True, return_assistant_tokens_mask=True)
    ours = processor.apply_chat_template(plain, return_assistant_tokens_mask=True)
    assert ours["input_ids"] == [theirs["input_ids"]] and ours["assistant_masks"] == [theirs["assistant_masks"]]
    (opened,) = processor.apply_chat_template(plain, continue_final_message=True)["input_ids"]
    assert theirs["input_ids"][: len(opened)] == opened and len(theirs["input_ids"]) == len(opened) + 2
    other = "{% for message in messages %}[{{ message['content'][0]['text'] }}]{% endfor %}"
    asked = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert rows_of(processor.apply_chat_template(asked, chat_template=other)) == [processor.encode("[x]")]


def test_rows_are_cut_and_padded_as_asked(processor, pictures):
    texts = ["one", "a longer one"]
    unpadded = [processor.encode(text) for text in texts]  # as trainers take them, who look at no mask
    assert processor(texts)["input_ids"] == unpadded and processor(texts)["attention_mask"] == [[1] * 3, [1] * 12]
    assert processor.apply_chat_template([[user_says(text)] for text in texts])["input_ids"] == [
        processor.apply_chat_template([user_says(text)], return_dict=False) for text in texts
    ]
    padded = processor(texts, padding=True, padding_side="right", return_tensors="pt")
    assert padded["attention_mask"][0].tolist() == [1] * 3 + [0] * 9
    padded = processor(texts, padding="max_length", max_length=16, return_tensors="pt")
    assert padded["input_ids"].shape == (2, 16)
    assert rows_of(processor(texts, truncation=True, max_length=5))[1] == processor.encode("a lon")
    refused = [
        ({"return_tensors": "pt"}, "pass padding=True"),
        ({"truncation": True}, "truncation needs max_length"),
        ({"stride": 3}, "stride=3 is not known"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            processor(texts, **options)
    with pytest.raises(ValueError, match="cuts row 0 of 22 tokens within a picture"):
        processor("What", pictures[0], truncation=True, max_length=12)
