"""Numbers with their nouns."""

from __future__ import annotations

from pretrain.system.words import counted


def test_one_is_not_many():
    assert [counted(number, "row") for number in (0, 1, 2700)] == ["0 rows", "1 row", "2,700 rows"]
    assert counted(2, "process", "processes") == "2 processes" and counted(1, "process", "processes") == "1 process"
