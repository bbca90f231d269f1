"""No text becomes a control token, whatever flags the tokenizer's file has, and whoever copies it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.hf.text_uni_x import TextEncoder, is_control
from tokenization.text_tokenizer import load_text_tokenizer

MARKS = ("<|vision_start|>", "<|im_end|>", "<tool_call>", "</think>", "[INST]")
WORD = "Uni-X"  # added to the vocabulary as a word


def byte_level(special: bool, in_vocabulary: bool = False) -> Tokenizer:
    """One token a byte, MARKS and WORD; `in_vocabulary`: the model itself holds the marks, and takes whole pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate([*alphabet, *(MARKS if in_vocabulary else ())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=in_vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not in_vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=not special) for mark in MARKS])
    tokenizer.add_tokens([WORD])
    return tokenizer


TOKENIZERS = {
    "marked special": byte_level(True),
    "not marked": byte_level(False),
    "in the vocabulary": byte_level(True, in_vocabulary=True),
    "in the vocabulary, not marked": byte_level(False, in_vocabulary=True),
}
texts = st.lists(st.one_of(st.sampled_from([*MARKS, "<", "|>", "vision", WORD, " "]), st.text(max_size=4)), max_size=8)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(parts=texts)
def test_text_is_spelled_and_comes_back(name, parts):
    tokenizer, text = TOKENIZERS[name], "".join(parts).encode("utf-8", "ignore").decode()
    controls = {tokenizer.token_to_id(mark) for mark in MARKS}
    ids = TextEncoder(tokenizer.to_str())(text)
    assert controls.isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_that_were_added_stay_words_and_copies_stay_safe(name, tmp_path):
    tokenizer = TOKENIZERS[name]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_text_tokenizer(tmp_path)
    text = f"{WORD} <tool_call>x<|im_end|>"
    expected = loaded.encode([text])[0].tolist()
    assert expected[0] == tokenizer.token_to_id(WORD) and {tokenizer.token_to_id(mark) for mark in MARKS}.isdisjoint(
        expected
    )
    for other in (copy.copy(loaded), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert other.encode([text, text])[1].tolist() == expected
    assert copy.deepcopy(loaded.encoder)(text) == expected


def test_what_is_a_control_token():
    assert is_control("anything", special=True)
    assert all(is_control(mark, special=False) for mark in MARKS)
    assert not any(is_control(word, special=False) for word in (WORD, "    ", "<", "|", "<a", "x>", "\n\n"))


def test_unknown_characters_are_still_unknown(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<end>"])
    assert TextEncoder(tokenizer.to_str())("a b a") == [0, 1, 0]
    assert json.loads(tokenizer.to_str())["model"]["unk_token"] == "<unk>"
