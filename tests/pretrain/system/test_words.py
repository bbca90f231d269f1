"""Numbers with their nouns."""

from __future__ import annotations

from pretrain.system.words import counted, shown


def test_one_is_not_many():
    assert [counted(number, "row") for number in (0, 1, 2700)] == ["0 rows", "1 row", "2,700 rows"]
    assert counted(2, "process", "processes") == "2 processes" and counted(1, "process", "processes") == "1 process"


def test_what_is_shown_of_a_value_fits_an_error_line():
    assert shown("a\nb") == r"'a\nb'" and shown([1, None]) == "[1, None]"
    assert shown("x" * 500) == "'" + "x" * 76 + "..." and len(shown(16**5000)) <= 80
