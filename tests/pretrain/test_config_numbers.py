"""Numbers of a configuration: none is too long for its error line, and none is read as another one."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from pretrain.config import TrainConfig, load_config
from tests.pretrain.test_config import path, refusal  # noqa: F401  (path is a fixture)

NUMBER_KEYS = [
    f"{section.name}.{spec.name}"
    for section in dataclasses.fields(TrainConfig)
    for spec in dataclasses.fields(typing.get_type_hints(TrainConfig)[section.name])
    if spec.type in ("int", "float")
]


def test_a_number_without_end_is_refused_in_one_short_line(path):  # noqa: F811
    """Python's whole numbers have no largest, and raised errors of their own as they were compared and written."""
    for key in NUMBER_KEYS:
        for value in ("1" + "0" * 400, "-1" + "0" * 400, "0x1" + "0" * 4000, "9" * 5000):
            message = refusal(path, f"{key}={value}")
            assert key in message and len(message) < 300


@pytest.mark.parametrize(
    ("value", "parts"),
    [("010", ["010 in line 1 is 8", "base 8"]), ("-0_17", ["is -15"]), ("12:30", ["is 750", "base 60"])],
)
def test_a_number_that_yaml_reads_in_another_base_is_refused(path, value, parts):  # noqa: F811
    message = refusal(path, f"run.seed={value}")
    assert all(part in message for part in ["run.seed", *parts, "write a plain number"]), message


def test_numbers_of_base_ten_and_marked_ones_are_what_they_look_like(path):  # noqa: F811
    for value, seed in (("0", 0), ("1_000", 1000), ("0x10", 16), ("'010'", 10), ("0b11", 3)):
        assert load_config(path, [f"run.seed={value}"]).run.seed == seed
