"""What each kind of document teaches, spelt out: which tokens are learned, to which end, and with which prompts.

A document is written as text: `<` and `>` are the markers of a picture, a code is a digit, `$` ends a document; the marks
of turns are theirs. What stands in brackets is learned, that is: the token before has it as its label.
"""

from __future__ import annotations

import dataclasses
import re

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import prompts
from model.prompts import PromptTemplates
from model.vocabulary import IGNORED, Vocabulary
from pretrain.row_tensors import assemble
from pretrain.rows import RowPlan, RowSize, SourceLengths
from pretrain.tasks import (
    IMAGE_TO_TEXT,
    IN_ORDER,
    NEITHER,
    NO_INSTRUCTION,
    NO_SOURCE,
    TEXT,
    TEXT_TO_IMAGE,
    TURNS,
    UNCONDITIONAL,
    TaskShares,
    build_document,
    build_ordered,
    ordered_lengths,
    tokenize_prompts,
)
from tests.pretrain.test_rows import index_of
from tokenization.sample import PICTURE, ROLE, WORDING, Part

START, END, EOS, TURN, OVER = range(0xE000, 0xE005)
VOCABULARY = Vocabulary(
    image_token_offset=0xF000, codebook_size=10, vision_start_id=START, vision_end_id=END, eos_id=EOS
)
TEMPLATES = PromptTemplates(("{caption} Draw!",), ("Say:",), "any")
LETTERS = {START: "<", END: ">", EOS: "$", TURN: "<|im_start|>", OVER: "<|im_end|>"}


def encode(text: str) -> list[int]:
    """A character a token, control tokens are only characters: what texts of shards are encoded with."""
    return [ord(character) for character in text]


def markup(text: str) -> list[int]:
    """The same with the marks of turns as one token each, as Qwen's tokenizer has them."""
    pieces = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text)
    return [
        token for piece in pieces for token in {"<|im_start|>": [TURN], "<|im_end|>": [OVER]}.get(piece, encode(piece))
    ]


PROMPTS = tokenize_prompts(markup, VOCABULARY, TEMPLATES)


def said(role: str, *wordings: str) -> Part:
    return Part(role, None, None, tuple((number, numpy.array(encode(text))) for number, text in enumerate(wordings)))


def shown(role: str, codes: str) -> Part:
    return Part(role, numpy.array([int(code) for code in codes]), (1, len(codes)), ())


def spelt(ids: numpy.ndarray, labels: numpy.ndarray) -> str:
    """A document as this file writes it."""
    assert len(ids) == len(labels) and labels[-1] == IGNORED
    text, before = "", False
    for number, token in enumerate(map(int, ids)):
        learned = number > 0 and labels[number - 1] != IGNORED
        assert not learned or labels[number - 1] == token
        letter = str(token - 0xF000) if token >= 0xF000 else LETTERS.get(token) or chr(token)
        text += ("]" if before and not learned else "") + ("[" if learned and not before else "") + letter
        before = learned
    return text + ("]" if before else "")


def ordered(task: int, *parts: Part, draw: int = 0) -> str:
    return spelt(*build_ordered(PROMPTS, task, draw, parts))


QUESTION, ANSWER, STOP = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def test_a_conversation_of_text():
    parts = [
        said("system", "Be kind."),
        said("user", "Hi"),
        said("assistant", "Hello"),
        said("user", "Bye"),
        said("assistant", "Ciao"),
    ]
    assert ordered(TURNS, *parts) == (
        f"<|im_start|>system\nBe kind.{STOP}\n{QUESTION}Hi{STOP}\n{ANSWER}[Hello{STOP}]\n"
        f"{QUESTION}Bye{STOP}\n{ANSWER}[Ciao{STOP}]\n"
    )


def test_a_conversation_with_the_picture_first():
    parts = [shown("user", "123"), said("user", "What?"), said("assistant", "A cat")]
    assert ordered(TURNS, *parts) == f"{QUESTION}<123>What?{STOP}\n{ANSWER}[A cat{STOP}]\n"


def test_a_conversation_about_several_pictures():
    parts = [
        shown("user", "12"),
        said("user", "and"),
        shown("user", "34"),
        said("user", "?"),
        said("assistant", "Cats"),
        shown("user", "56"),
        said("user", "And?"),
        said("assistant", "Dog"),
    ]
    assert ordered(TURNS, *parts) == (
        f"{QUESTION}<12>and<34>?{STOP}\n{ANSWER}[Cats{STOP}]\n{QUESTION}<56>And?{STOP}\n{ANSWER}[Dog{STOP}]\n"
    )


def test_a_conversation_whose_answers_have_texts_and_pictures():
    parts = [
        said("user", "Show"),
        said("assistant", "Here"),
        shown("assistant", "12"),
        said("assistant", "it is"),
        said("user", "More"),
        shown("assistant", "34"),
    ]
    assert ordered(TURNS, *parts) == (
        f"{QUESTION}Show{STOP}\n{ANSWER}[Here<12>it is{STOP}]\n{QUESTION}More{STOP}\n{ANSWER}[<34>{STOP}]\n"
    )


def test_texts_and_pictures_in_order():
    assert ordered(IN_ORDER, said("", "Once"), shown("", "12"), said("", "then")) == "O[nce<12>then$]"
    assert ordered(IN_ORDER, shown("", "12"), shown("", "34")) == "<[12><34>$]"


EDIT = [said("user", "make it red", "paint it red"), shown("user", "123"), shown("assistant", "456")]
TWICE = [*EDIT, said("user", "now blue"), shown("assistant", "789")]


def test_an_edit():
    assert ordered(TURNS, *EDIT) == f"{QUESTION}make it red<123>{STOP}\n{ANSWER}[<456>{STOP}]\n"
    assert ordered(TURNS, *EDIT, draw=7) == f"{QUESTION}paint it red<123>{STOP}\n{ANSWER}[<456>{STOP}]\n"
    assert ordered(TURNS, *TWICE) == (
        f"{QUESTION}make it red<123>{STOP}\n{ANSWER}[<456>{STOP}]\n{QUESTION}now blue{STOP}\n{ANSWER}[<789>{STOP}]\n"
    )
    both = [said("user", "mix"), shown("user", "1"), shown("user", "2"), shown("assistant", "3")]
    assert ordered(TURNS, *both) == f"{QUESTION}mix<1><2>{STOP}\n{ANSWER}[<3>{STOP}]\n"


def test_an_edit_that_lost_something():
    assert ordered(NO_INSTRUCTION, *EDIT) == f"{QUESTION}<123>{STOP}\n{ANSWER}[<456>{STOP}]\n"
    assert ordered(NO_SOURCE, *EDIT) == f"{QUESTION}make it red{STOP}\n{ANSWER}[<456>{STOP}]\n"
    assert ordered(NEITHER, *EDIT) == "any<[456>$]"
    assert ordered(NO_INSTRUCTION, *TWICE) == (
        f"{QUESTION}<123>{STOP}\n{ANSWER}[<456>{STOP}]\n{QUESTION}{STOP}\n{ANSWER}[<789>{STOP}]\n"
    )
    assert ordered(NEITHER, *TWICE) == "any<[456>$]"


CAPTION, CODES = numpy.array(encode("a cat")), numpy.arange(1, 4)


@pytest.mark.parametrize(
    ("task", "on_prompts", "expected"),
    [
        (TEXT_TO_IMAGE, False, "a cat Draw!<[123>$]"),
        (TEXT_TO_IMAGE, True, "a[ cat Draw!<123>$]"),
        (UNCONDITIONAL, False, "any<[123>$]"),
        (IMAGE_TO_TEXT, False, "<123>Say:[a cat$]"),
        (TEXT, False, "a[ cat$]"),
    ],
)
def test_captions_in_both_directions_and_text(task, on_prompts, expected):
    assert spelt(*build_document(PROMPTS, task, 0, CAPTION, CODES, on_prompts)) == expected


def test_nothing_is_learned_across_documents():
    """One row of every kind: a label is the next token of the same document, and the last token has none."""
    documents = [build_ordered(PROMPTS, task, 0, EDIT) for task in (TURNS, NO_INSTRUCTION, NO_SOURCE, NEITHER)]
    documents += [build_document(PROMPTS, task, 0, CAPTION, CODES, True) for task in range(IN_ORDER)]
    documents.append(build_ordered(PROMPTS, IN_ORDER, 0, [said("", "Once"), shown("", "12")]))
    row = assemble(0, documents, VOCABULARY, RowSize(480, 8))
    ids, labels = row.ids[row.to_document].numpy(), row.labels[row.to_document].numpy()
    ends = numpy.cumsum(row.lengths["document"])
    assert len(ends) > len(documents) and (labels[ends - 1] == IGNORED).all()
    assert (labels[ends[len(documents) - 1] :] == IGNORED).all()  # padding
    learned = numpy.flatnonzero(labels != IGNORED)
    assert (labels[learned] == ids[learned + 1]).all()
    assert [spelt(*document) for document in documents] == [
        spelt(ids[end - length : end], labels[end - length : end])
        for end, length in zip(ends, row.lengths["document"][: len(documents)])
    ]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", max_codepoint=0xD000), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_training_and_generation_ask_for_an_edit_in_the_same_ids(instruction, codes):
    """The prompts that guidance compares: the whole, without the instruction, and neither."""
    source = Part("user", numpy.array(codes), (1, len(codes)), ())
    parts = [said("user", instruction), source, shown("assistant", "456")]
    whole, image_only = prompts.edit_ids([codes], instruction, encode, markup, VOCABULARY)
    neither = prompts.unconditional_ids(encode, VOCABULARY, TEMPLATES)
    without_source, _ = prompts.edit_ids([], instruction, encode, markup, VOCABULARY)
    asked = {TURNS: whole, NO_INSTRUCTION: image_only, NEITHER: neither, NO_SOURCE: without_source}
    for task, prompt in asked.items():
        ids, labels = build_ordered(PROMPTS, task, 0, parts)
        assert ids[: len(prompt)].tolist() == prompt
        assert labels[len(prompt) - 1 : len(prompt) + 3].tolist() == [0xF004, 0xF005, 0xF006, END]


def test_training_and_generation_ask_about_pictures_in_the_same_ids():
    prompt = prompts.turn_ids([[1, 2], [3]], "What?", encode, markup, VOCABULARY)
    parts = [shown("user", "12"), shown("user", "3"), said("user", "What?"), said("assistant", "Cats")]
    ids, _ = build_ordered(PROMPTS, TURNS, 0, parts)
    assert ids[: len(prompt)].tolist() == prompt and len(ids) == len(prompt) + len("Cats") + 2


def test_turns_are_those_of_qwens_chat_template():
    """As Qwen2.5-Instruct's template renders these messages, all of it. Without a system turn, that template puts one in
    ("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."); here the data say whether there is one.
    """
    parts = [
        said("system", "You are a helpful assistant."),
        said("user", "Hi"),
        said("assistant", "Hello"),
        said("user", "Bye"),
        said("assistant", "Ciao"),
    ]
    rendered = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|>\n"
    )
    ids, _ = build_ordered(PROMPTS, TURNS, 0, parts)
    assert ids.tolist() == markup(rendered)


ROUNDS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    ROUNDS,
    st.sampled_from([TURNS, NO_INSTRUCTION, NO_SOURCE, NEITHER]),
    st.integers(0, 2**16 - 1),
)
def test_edits_have_the_planned_length_whatever_they_lost(sources, codes, rounds, task, draw):
    """Several sources, several rounds, several wordings of an instruction; beside a document that lost nothing."""
    entries, parts = [], []
    for _ in range(sources):
        entries.append((codes, PICTURE + 2 * ROLE))
        parts.append(Part("user", numpy.zeros(codes, int), None, ()))
    for length, wordings, answer in rounds:
        entries += [(length + more, 2 * ROLE + WORDING * (more > 0)) for more in range(wordings)]
        parts.append(Part("user", None, None, tuple((0, numpy.full(length + more, 65)) for more in range(wordings))))
        entries.append((answer, PICTURE + 3 * ROLE))
        parts.append(Part("assistant", numpy.zeros(answer, int), None, ()))
    lengths, layout = (numpy.array(column) for column in zip(*entries))
    planned = ordered_lengths(
        PROMPTS,
        numpy.array([TURNS, task, task]),
        numpy.array([draw, draw, draw + 1]),
        numpy.array([len(entries)] * 3),
        numpy.tile(lengths, 3),
        numpy.tile(layout, 3),
    )
    built = [build_ordered(PROMPTS, *asked, parts)[0] for asked in ((TURNS, draw), (task, draw), (task, draw + 1))]
    assert planned.tolist() == [len(ids) for ids in built]


def test_edits_lose_what_they_lose_as_often_as_asked_and_nothing_else_does():
    edit = [(4, PICTURE + 2 * ROLE), (3, 2 * ROLE), (4, PICTURE + 3 * ROLE)]
    entries = [edit] * 4000 + [[(4, PICTURE), (3, 0)]] * 500
    index = index_of(entries, ["edit"] * 4000 + ["caption_pair"] * 500)

    def tasks(**shares: float) -> numpy.ndarray:
        """How many of the edits got each task, all documents being drawn once."""
        planned = RowPlan(
            [SourceLengths("a", 1.0, index)], PROMPTS, TaskShares(0.5, 0.2, False, **shares), RowSize(400, 4), 3
        )
        rows, number = [], 0
        while planned.epoch_of(number) == 0:
            rows += planned.row(number)
            number += 1
        assert {piece.task for piece in rows if piece.document >= 4000} == {TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL}
        return numpy.bincount([piece.task for piece in rows if piece.document < 4000], minlength=NEITHER + 1) / 4000

    assert tasks()[TURNS] == 1
    found = tasks(drop_instruction=0.3, drop_source=0.2)
    assert found[[NO_INSTRUCTION, NO_SOURCE, NEITHER]] == pytest.approx([0.24, 0.14, 0.06], abs=0.02)
    found = tasks(drop_instruction=0.05, drop_source=0.05, drop_both=0.05)  # InstructPix2Pix
    assert found[[NO_INSTRUCTION, NO_SOURCE, NEITHER]] == pytest.approx([0.045, 0.045, 0.052], abs=0.015)
    assert tasks(drop_both=1.0)[NEITHER] == 1


def test_what_edits_lose_is_part_of_the_plan_only_where_it_is_asked_for():
    """A run that was started before there was such a thing goes on."""
    index = index_of([[(4, PICTURE + 2 * ROLE), (3, 2 * ROLE), (4, PICTURE + 3 * ROLE)]], ["edit"])

    def fingerprint(shares: TaskShares) -> str:
        return RowPlan([SourceLengths("a", 1.0, index)], PROMPTS, shares, RowSize(64, 4), 0).fingerprint

    plain = TaskShares(0.5, 0.2, False)
    found = {
        fingerprint(dataclasses.replace(plain, **{name: share}))
        for name in ("drop_instruction", "drop_source", "drop_both", "shared_noise")
        for share in (0.0, 0.1)
    }
    assert len(found) == 5 and fingerprint(plain) in found
