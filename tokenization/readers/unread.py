"""Keys and columns that no reader reads, for a warning before a long job: as `system` beside a conversation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenization.readers.document import CAPTION_KEYS, CAPTION_PAIR, CONVERSATION, EDIT, INTERLEAVED, TEXT

PICTURES = ("image", "file_name", "images")
CHOICES: dict[str, tuple[tuple[str, ...], ...]] = {
    CAPTION_PAIR: (PICTURES, CAPTION_KEYS),
    TEXT: (("text",),),
    CONVERSATION: (PICTURES, ("conversations", "messages", "texts")),
    INTERLEAVED: (("parts", "images"), ("texts",)),
    EDIT: (("image_list",), ("instruction_list",)),
}
"""Of each kind of documents, the keys that are read: of the keys of a choice the first that says something."""
NOTES = frozenset(
    [
        "id",
        "key",
        "url",
        "source",
        "license",
        "languages",
        "language",
        "width",
        "height",
        "original_width",
        "original_height",
    ]
    + [
        "format",
        "md5",
        "sha256",
        "hash",
        "phash",
        "exif",
        "status",
        "error_message",
        "timestamp",
        "score",
        "similarity",
    ]
)
"""What people keep beside a document to know where it is from or how good it is: none of it is meant to be learned."""
TURN = ("from", "role", "value", "content", "user", "assistant")
PART = ("image", "text")


def unread_keys(records: Iterable[dict[str, Any]], kind: str) -> list[str]:
    """Keys of these records, of their turns and of their parts, that have content and are not read."""
    found: dict[str, None] = {}
    for record in records:
        filled = [key for key, value in record.items() if value not in (None, "", [], {})]
        read = {next((key for key in keys if key in filled), "") for keys in CHOICES[kind]}
        found |= dict.fromkeys(key for key in filled if key not in read and key not in NOTES)
        for key, inner, what in [(key, TURN, "turns") for key in CHOICES[CONVERSATION][1]] + [("parts", PART, "parts")]:
            entries = record[key] if key in read and isinstance(record[key], list) else []
            for entry in entries:
                names = entry if isinstance(entry, dict) else ()
                found |= dict.fromkeys(
                    f"{name} of {what}" for name in names if name not in inner and entry[name] not in (None, "", [], {})
                )
    return list(found)


def record_of_schema(schema: Any) -> dict[str, Any]:
    """A record with content under every column of an Arrow schema, and under every field of lists of objects."""
    return {field.name: _example(field.type) for field in schema}


def _example(kind: Any) -> Any:
    if hasattr(kind, "value_type") and hasattr(kind.value_type, "names"):
        return [dict.fromkeys(kind.value_type.names, "something")]
    return "something"
