"""The faults of tests/mutants.py can be made: the text that each replaces stands once in its file, and its tests are there."""

from pathlib import Path

from tests.mutants import TESTS, mutants

ROOT = Path(__file__).resolve().parents[1]


def test_every_fault_can_be_made():
    stale = [f"{each.file}: {each.old}" for each in mutants() if (ROOT / each.file).read_text().count(each.old) != 1]
    assert stale == [], "these stand not once: change them in tests/mutants.py with the source"


def test_the_tests_that_must_see_them_are_there():
    for word in (word for words in TESTS.values() for word in words.split()):
        file, _, test = word.partition("::")
        assert (ROOT / file).is_file() and f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), word
