"""A key that stands twice in an object is an error that names it, however deep the object lies."""

import pytest

from pretrain.system.strict_json import from_json


def test_values_are_those_of_the_text():
    assert from_json('{"a": [1, {"b": null}], "c": "a"}') == {"a": [1, {"b": None}], "c": "a"} and from_json(b"3") == 3


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_twice_is_an_error(text):
    with pytest.raises(ValueError, match="the key 'a' stands twice in an object"):
        from_json(text)
