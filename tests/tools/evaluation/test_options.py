"""Exact option parsing: what names an option does, and the word "a" does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.evaluation.options import choose, options_in, yes_or_no

OPTIONS = {"A": "a red apple", "B": "two cats", "C": "the sea", "D": "nothing"}
SAID = ["dog", "cat", "house", "is", "on", "the", "grass", "green", "a", "big", "sun", "and", "there"]
WORDS = st.lists(st.sampled_from(SAID), min_size=1, max_size=8)
LETTERS = st.sampled_from(sorted(OPTIONS))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("b)", "B"),
        (" B: two cats", "B"),
        ("B. two cats", "B"),
        ("**C**", "C"),
        ("The answer is B", "B"),
        ("The correct answer is: (C).", "C"),
        ("Answer: D", "D"),
        ("Option A", "A"),
        ("two cats", "B"),
        ("The sea.", "C"),
        ("the answer is the sea", "C"),
        ("a", None),
        ("A dog is on the grass", None),
        ("a red house", None),
        ("I see a cat", None),
        ("", None),
        ("A or B", None),
        ("A. B.", None),
        ("E", None),
        ("Between (A) and (B)", None),
        ("A: two cats", None),
        ("The answer is a dog", None),
        ("Apple", None),
        ("Because of D", None),
        ("A)and B)", None),
    ],
)
def test_answers(answer, expected):
    assert choose(answer, OPTIONS) == expected


@given(LETTERS, st.sampled_from(["{}", "{}.", "({})", "[{}]", "{})", "The answer is {}.", "answer: {}", "Option {}"]))
def test_a_letter_that_is_set_apart_names_its_option(letter, form):
    assert choose(form.format(letter), OPTIONS) == letter


@given(st.sampled_from(["a", "A"]), WORDS)
def test_a_sentence_that_begins_with_the_article_names_nothing(article, words):
    sentence = f"{article} {' '.join(words)}"
    assert choose(sentence, OPTIONS) is None and choose(f"{sentence}.", OPTIONS) is None
    assert choose(f"The answer is {sentence}", OPTIONS) is None


@given(st.text(max_size=40))
def test_whatever_is_said_names_an_option_or_nothing(text):
    found = choose(text, OPTIONS)
    assert found is None or found in OPTIONS
    assert choose(text, {}) is None


@given(st.permutations(sorted(OPTIONS)), LETTERS)
def test_an_options_own_text_names_it_wherever_it_stands(order, letter):
    options = dict(zip("ABCD", (OPTIONS[key] for key in order), strict=True))
    assert options[choose(OPTIONS[letter].upper(), options)] == OPTIONS[letter]


def test_equal_options_have_no_text_of_their_own():
    assert choose("a cat", {"A": "a cat", "B": "A cat."}) is None


@given(st.lists(st.text("abcdefgh xyz", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6))
def test_options_are_found_in_a_prompt(texts):
    for form in ("{}. {}", "({}) {}", "{}) {}", "{}: {}"):
        lines = [form.format(chr(ord("A") + number), text) for number, text in enumerate(texts)]
        found = options_in("What is it?\n" + "\n".join(lines) + "\nAnswer with the option's letter.")
        assert list(found.values()) == [text.strip() for text in texts]
    assert options_in("Is it a dog?\nA. only one") == {} == options_in("Is there a dog? Answer yes or no.")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, there is a dog", "yes"),
        ("The answer is no", "no"),
        ("nothing", None),
        ("yes or no", None),
        ("there is", None),
        ("Yesterday", None),
        ("", None),
        ("I say no", None),
    ],
)
def test_yes_or_no(answer, expected):
    assert yes_or_no(answer) == expected
