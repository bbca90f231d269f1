"""Tables with pictures inside, from Parquet or Arrow files: what their columns mean, and their rows as documents.

    image + caption, captions or text             a picture with its captions
    text                                          plain text
    images + texts (each {user, assistant})       conversations, as FineVision has them
    images + texts (each text or null)            texts and pictures in order: where one is null, the other stands
    images + conversations or messages            conversations, as LLaVA has them; images may be missing
    image_list + instruction_list                 picture editing, as BAGEL has it

A picture is bytes, or Hugging Face's struct of bytes and path. `id` is optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenization.readers.document import (
    CAPTION_KEYS,
    CAPTION_PAIR,
    CONVERSATION,
    EDIT,
    INTERLEAVED,
    TEXT,
    BadRecord,
    Document,
    OpenFile,
    Picture,
    Reject,
    Text,
    captions_of,
    decode_utf8,
    given_id,
    json_type,
    text_of,
)
from tokenization.readers.turns import conversation_parts, edit_parts, question_parts

ROWS_AT_ONCE = 64
PICTURES = ("image", "images", "image_list")
TURNS = ("conversations", "messages")
COLUMNS = ("id", *PICTURES, "texts", "instruction_list", *TURNS, *CAPTION_KEYS)


def kind_of_schema(schema: Any) -> str | None:
    """The kind of document that the rows of an Arrow schema are, or None."""
    import pyarrow

    names = set(schema.names)
    if names >= {"image_list", "instruction_list"}:
        return EDIT
    if names & set(TURNS):
        return CONVERSATION
    if names >= {"images", "texts"}:
        texts = schema.field("texts").type
        if not hasattr(texts, "value_type"):
            return None
        return CONVERSATION if pyarrow.types.is_struct(texts.value_type) else INTERLEAVED
    if "image" in names:
        return CAPTION_PAIR if names & set(CAPTION_KEYS) else None
    return TEXT if "text" in names else None


def items_of(batch: Any, file: OpenFile, first: int) -> Iterator[tuple[int, Document | Reject]]:
    """The rows of an Arrow record batch, numbered from `first` on."""
    for number, record in enumerate(records_of(batch), first):
        where = f"{file.name}:{number + 1}"
        identity = where
        try:
            record = {name: value if name in PICTURES else with_text(value) for name, value in record.items()}
            identity = given_id(record, where)
            parts = parts_of(record, file.kind)
        except BadRecord as bad:
            yield number, Reject(identity, file.source, where, bad.reason, bad.detail)
        else:
            yield number, Document(identity, file.source, where, file.kind, parts)


def parts_of(record: dict[str, Any], kind: str) -> tuple[Text | Picture, ...]:
    """The parts of a row. Raises BadRecord."""
    if kind == TEXT:
        return (Text((text_of(record),)),)
    if kind == CAPTION_PAIR:
        return (Picture(picture_of(record.get("image"), "image")), Text(captions_of(record)))
    if kind == EDIT:
        return edit_parts(pictures_of(record, "image_list"), record.get("instruction_list"), "instruction_list")
    if kind == INTERLEAVED:
        return ordered_parts(record)
    pictures = pictures_of(record, "images") if record.get("images") else []
    if not pictures and record.get("image") is not None:
        pictures = [picture_of(record["image"], "image")]
    key = next((key for key in TURNS if record.get(key) is not None), None)
    return (
        conversation_parts(record[key], pictures, key)
        if key
        else question_parts(record.get("texts"), pictures, "texts")
    )


def ordered_parts(record: dict[str, Any]) -> tuple[Text | Picture, ...]:
    """`images` and `texts` of equal length, one of both null at each place. Raises BadRecord `picture_count`."""
    images, texts = record.get("images"), record.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts) or not texts:
        raise BadRecord("picture_count", "images and texts: expected two lists of one length")
    parts: list[Text | Picture] = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if image is not None:
            parts.append(Picture(picture_of(image, f"images[{number}]")))
        if text is not None or image is None:
            parts.append(Text((text_of({f"texts[{number}]": text}, f"texts[{number}]"),)))
    return tuple(parts)


def pictures_of(record: dict[str, Any], key: str) -> list[bytes]:
    """The bytes of a list of pictures. Raises BadRecord."""
    if not isinstance(record.get(key), list):
        raise BadRecord("wrong_type", f"{key}: expected a list of pictures, found {json_type(record.get(key))}")
    return [picture_of(picture, f"{key}[{number}]") for number, picture in enumerate(record[key])]


def picture_of(picture: Any, key: str) -> bytes:
    """The bytes of a picture. Raises BadRecord `missing_key` or `wrong_type`."""
    if isinstance(picture, dict):
        picture = picture.get("bytes")
    if picture is None:
        raise BadRecord("missing_key", f"{key}: the row has no picture bytes")
    if not isinstance(picture, bytes):
        raise BadRecord("wrong_type", f"{key}: expected bytes, found {json_type(picture)}")
    return picture


def with_text(value: Any) -> Any:
    """A column's value, its bytes decoded as UTF-8. Raises BadRecord `invalid_utf8`."""
    if isinstance(value, bytes):
        return decode_utf8(value)
    if isinstance(value, dict):
        return {key: with_text(entry) for key, entry in value.items()}
    return [with_text(entry) for entry in value] if isinstance(value, list) else value


def records_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow record batch; text stays bytes, so that one bad string does not spoil its batch."""
    columns = {name: batch.column(name) for name in batch.schema.names if name in COLUMNS}
    rows = {name: column.cast(_as_bytes(column.type)).to_pylist() for name, column in columns.items()}
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def _as_bytes(kind: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return pyarrow.large_binary()
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return pyarrow.large_list(_as_bytes(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return kind
