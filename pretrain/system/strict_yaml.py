"""YAML that refuses duplicate keys, of which PyYAML takes the last and loses the first, and numbers of other bases:
YAML 1.1 reads 010 as 8 and 12:30 as 750."""

from __future__ import annotations

from functools import cache
from typing import Any

LONGEST = 1_000  # characters of a whole number; Python itself reads 4,300


def read_yaml(text: str, name: str) -> Any:
    """Parse a YAML text. Raises ValueError with one line, which gives lines and columns but not `name` twice."""
    import yaml

    try:
        loader = _strict_loader()(text)
    except (
        yaml.reader.ReaderError
    ) as error:  # raised before there is a loader; its position counts from the text's start
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"line {line} has the character {chr(error.character)!r}, which YAML does not allow: remove it"
        ) from None
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        context = f"{error.context}: " if error.context else ""
        raise ValueError(f"{context}{error.problem}{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        raise ValueError(" ".join(str(error).split()) or "nested too deeply") from None
    finally:
        loader.dispose()


@cache
def _strict_loader() -> type:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """yaml.SafeLoader that refuses duplicate keys, and whole numbers that are other ones than they look like."""

        def construct_yaml_int(self, node: Any) -> int:
            text, line = node.value, node.start_mark.line + 1
            if len(text) > LONGEST:
                raise ValueError(f"a whole number of {len(text):,} digits in line {line}: nothing here is as large")
            value, digits = super().construct_yaml_int(node), text.replace("_", "").lstrip("+-")
            if ":" in text or (digits.isdecimal() and digits[0] == "0" != digits):
                raise ValueError(
                    f"{text} in line {line} is {value} in YAML, which reads it in base {60 if ':' in text else 8}: write a "
                    "plain number, or quotes around a text"
                )
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen: dict[Any, int] = {}
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if not isinstance(key, (str, int, float, bool)):
                    continue
                if key in seen:
                    raise ValueError(f"key {key!r} stands twice, in lines {seen[key]} and {line}: keep one")
                seen[key] = line
            return super().construct_mapping(node, deep)

    StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
    return StrictLoader
