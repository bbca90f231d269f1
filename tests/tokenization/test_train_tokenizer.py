"""The small text tokenizer: Qwen2.5's special tokens and splitting, any text back as it was."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.prompts import DEFAULT_TEMPLATES
from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tests.tokenization.corpora import captions, tar_corpus
from tokenization.text_tokenizer import load_text_tokenizer
from tokenization.train_tokenizer import SPECIAL_TOKENS, read_captions, texts_of, train

TEXTS = ["grinning face", "grinsendes gesicht", "咧嘴笑的脸", "red heart 2024"] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS, 400)


def test_special_tokens_come_last_and_are_single_ids(tokenizer):
    size = tokenizer.get_vocab_size()
    assert 256 + len(SPECIAL_TOKENS) < size <= 400
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(size - len(SPECIAL_TOKENS), size))
    ids = tokenizer.encode("red<|vision_start|>heart", add_special_tokens=False).ids
    assert tokenizer.token_to_id("<|vision_start|>") in ids


def test_the_size_is_a_limit():
    many = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"] * 3
    assert train(many, 300).get_vocab_size() == 300
    assert train(TEXTS, 261).get_vocab_size() == 261


def test_frequent_words_and_the_prompts_become_short(tokenizer):
    assert len(tokenizer.encode("grinning face").ids) <= 3
    wording = DEFAULT_TEMPLATES.image_to_text[0]
    assert len(tokenizer.encode(wording).ids) < len(wording) / 2


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(tokenizer, text):
    if any(token in text for token in SPECIAL_TOKENS):
        return
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_digits_stand_alone_as_in_qwen(tokenizer):
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in 2024 it's")]
    assert pieces == ["in", "Ġ", "2", "0", "2", "4", "Ġit", "'s"]


def test_captions_are_read_in_both_spellings_and_whole(tmp_path):
    path = tmp_path / "captions.jsonl"
    records = [{"caption": "a\u2028b"}, {"captions": ["c", "d\x85"]}, {"captions": []}]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join([lines[0], "", *lines[1:], ""]), encoding="utf-8")
    assert read_captions(path) == ["a\u2028b", "c", "d\x85"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '"a"', "3", "{}", '{"caption": 3}', '{"captions": "abc"}', '{"captions": ["a", null]}']
)
def test_a_line_without_captions_is_named(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        read_captions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"caption": "\\ud800"}', ""),
        ('{"caption": ' + "[" * 100_000 + "]" * 100_000 + "}", ""),
        ('{"caption": "a", "caption": "b"}', "the key 'caption' stands twice in an object"),
    ],
)
def test_a_line_that_no_reader_takes_is_named(tmp_path, line, why):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{why}"):
        read_captions(path)


def test_captions_are_found_as_shards_find_them(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"caption": "a"}\r\n{"captions": null, "caption": "b"}\r\n{"caption": ["c", "d"]}')
    assert list(texts_of(path)) == ["a", "b", "c", "d"]


def test_a_tokenizer_that_shards_need_is_not_written_over(commands: CommandServer, tmp_path):
    script = "tokenization/train_tokenizer.py"
    (tmp_path / "texts.jsonl").write_text('{"text": "a few words", "meta": "x"}\n')
    words = ("--input", tmp_path / "texts.jsonl", "--output")
    for _ in range(2):
        done = commands.run(script, *words, tmp_path / "a", "--vocab-size", 300)
        assert done.code == 0 and "keys that are not read: meta" in done.err
    before = (tmp_path / "a/tokenizer.json").read_bytes()
    done = commands.run(script, *words, tmp_path / "a", "--vocab-size", 299)
    assert done.code == 2 and "a/tokenizer.json: is another tokenizer" in done.err.splitlines()[-1]
    assert (tmp_path / "a/tokenizer.json").read_bytes() == before
    done = commands.run(script, *words, tmp_path / "texts.jsonl")
    assert done.code == 2 and "texts.jsonl: cannot be made a folder" in done.err.splitlines()[-1]
    assert commands.run(script, *words, tmp_path / "b", "--vocab-size", 10**11).code == 2
    assert_refused(
        commands.run(script, "--input", "memory://no/texts", "--output", tmp_path / "b"), "memory://no/texts"
    )
    assert not (tmp_path / "b").exists()


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"caption": "Bär"}'.encode("latin-1"))
    for path in (tmp_path / "missing.jsonl", tmp_path / "latin.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_captions(path)
        assert str(path) in str(caught.value)


def test_the_command_writes_what_sharding_reads(commands: CommandServer, tiny_data: TinyData, tmp_path):
    tokenizer = load_text_tokenizer(tiny_data.tokenizer)
    assert tokenizer.vocab_size <= 400
    (ids,) = tokenizer.encode(["<|endoftext|>"])
    assert len(ids) > 1  # text that spells a special token is text
    script = "tokenization/train_tokenizer.py"
    captions = tiny_data.corpus / "train/folder/captions.jsonl"
    done = commands.run(script, "--captions", captions, "--output", tmp_path / "a", "--vocab-size", 400)
    assert done.code == 0
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tiny_data.tokenizer / "tokenizer.json").read_bytes()
    done = commands.run(script, "--captions", captions, "--output", tmp_path / "b", "--vocab-size", 260)
    assert done.code == 2 and "261" in done.err.splitlines()[-1] and not (tmp_path / "b").exists()
    done = commands.run(script, "--captions", tmp_path / "no.jsonl", "--output", tmp_path / "b")
    assert_refused(done, "no.jsonl")


def test_any_corpus_of_texts_is_read(commands: CommandServer, tmp_path):
    tars = tar_corpus(tmp_path / "tars", 6, per_tar=3)
    lines = tmp_path / "news.jsonl"
    lines.write_text('{"text": "some news"}\n{"text": " "}\n{"text": 3}\n{"text": ""}\n')
    assert sorted(texts_of(tars)) == sorted(text for number in range(6) for text in captions(number))
    done = commands.run(
        "tokenization/train_tokenizer.py", "--input", tars, lines, "--output", tmp_path / "out", "--vocab-size", 300
    )
    assert done.code == 0 and "300 ids" in done.out
    told = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert [line.partition(".jsonl:")[0] for line in told[:2]] == [
        "warning: rejected as empty_text: news",
        "warning: rejected as wrong_type: news",
    ]
    assert "news.jsonl:2:" in told[0] and "news.jsonl:3:" in told[1]
    assert told[2:] == [f"warning: {lines}: of its documents 3 left out (empty_text 2, wrong_type 1)"]


def test_a_corpus_without_texts_is_refused_and_a_small_one_told(commands: CommandServer, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "few.txt").write_text("hello world " * 9)

    def make(name: str):
        words = ("--captions", tmp_path / name, "--output", tmp_path / "made", "--vocab-size", 9000)
        return commands.run("tokenization/train_tokenizer.py", *words)

    done = make("none.txt")
    assert (
        done.code == 2 and "none.txt: no text is there to learn from" in done.err and not (tmp_path / "made").exists()
    )
    done = make("few.txt")
    assert done.code == 0 and "the texts have no more, of 9,000 asked for" in done.out
