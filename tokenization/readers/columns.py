"""Image tables in Parquet or Arrow files: the meaning of their columns, and their rows as documents.

    image + caption, captions or text             a picture with its captions
    text                                          plain text
    images + texts (each {user, assistant})       conversations, as FineVision has them
    images + texts (each text or null)            texts and pictures in order: where one is null, the other stands
    images + conversations or messages            conversations, as LLaVA has them; images may be missing
    image_list + instruction_list                 picture editing, as BAGEL has it

A picture is bytes, or Hugging Face's struct of bytes and path; without bytes it is read from its path, if that lies in the
corpus' folder. Columns of JSON (Arrow's `arrow.json`, as `datasets` 5 writes mixed types, and Parquet's logical type) are
decoded. `id` is optional.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.system.strict_json import from_json
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
    path_of,
    text_of,
)
from tokenization.readers.turns import Data, conversation_parts, edit_parts, question_parts

ROWS_AT_ONCE = 64
PICTURES = ("image", "images", "image_list")
TURNS = ("conversations", "messages")
COLUMNS = ("id", *PICTURES, "texts", "instruction_list", *TURNS, *CAPTION_KEYS)


def kind_of_schema(schema: Any) -> str | None:
    """Kind of documents of an Arrow schema, or None."""
    import pyarrow

    names = set(schema.names)
    json_texts = "texts" in names and is_json(schema.field("texts").type)
    if names >= {"image_list", "instruction_list"}:
        return EDIT
    if names & set(TURNS):
        return CONVERSATION
    if names >= {"images", "texts"}:
        texts = schema.field("texts").type
        if json_texts:  # mixed types are turns of objects; texts alone would be a list of strings
            return CONVERSATION
        if not hasattr(texts, "value_type"):
            return None
        return CONVERSATION if pyarrow.types.is_struct(texts.value_type) else INTERLEAVED
    if "image" in names:
        return CAPTION_PAIR if names & set(CAPTION_KEYS) else None
    return TEXT if "text" in names else None


def items_of(batch: Any, file: OpenFile, first: int) -> Iterator[tuple[int, Document | Reject]]:
    """Documents and rejects of an Arrow record batch, numbered from `first` on."""
    for number, record in enumerate(records_of(batch), first):
        where = f"{file.name}:{number + 1}"
        identity = where
        try:
            record = {name: value if name in PICTURES else with_text(value) for name, value in record.items()}
            if any(isinstance(value, BadRecord) for value in record.values()):
                raise next(value for value in record.values() if isinstance(value, BadRecord))
            identity = given_id(record, where)
            parts = parts_of(record, file.kind, file.root)
        except BadRecord as bad:
            yield number, Reject(identity, file.source, where, bad.reason, bad.detail)
        else:
            yield number, Document(identity, file.source, where, file.kind, parts)


def parts_of(record: dict[str, Any], kind: str, root: str) -> tuple[Text | Picture, ...]:
    """Parts of a row. Raises BadRecord."""
    if kind == TEXT:
        return (Text((text_of(record),)),)
    if kind == CAPTION_PAIR:
        return (Picture(picture_of(record.get("image"), "image", root)), Text(captions_of(record)))
    if kind == EDIT:
        return edit_parts(pictures_of(record, "image_list", root), record.get("instruction_list"), "instruction_list")
    if kind == INTERLEAVED:
        return ordered_parts(record, root)
    pictures = pictures_of(record, "images", root) if record.get("images") else []
    if not pictures and record.get("image") is not None:
        pictures = [picture_of(record["image"], "image", root)]
    key = next((key for key in TURNS if record.get(key) is not None), None)
    return (
        conversation_parts(record[key], pictures, key)
        if key
        else question_parts(record.get("texts"), pictures, "texts")
    )


def ordered_parts(record: dict[str, Any], root: str) -> tuple[Text | Picture, ...]:
    """Interleaved parts: `images` and `texts` of equal length, one of both null at each position. Raises BadRecord
    `picture_count`."""
    images, texts = record.get("images"), record.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts) or not texts:
        raise BadRecord("picture_count", "images and texts: expected two lists of one length")
    parts: list[Text | Picture] = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if image is not None:
            parts.append(Picture(picture_of(image, f"images[{number}]", root)))
        if text is not None or image is None:
            parts.append(Text((text_of({f"texts[{number}]": text}, f"texts[{number}]"),)))
    return tuple(parts)


def pictures_of(record: dict[str, Any], key: str, root: str) -> list[Data]:
    """Bytes or paths of a list of images. Raises BadRecord."""
    if not isinstance(record.get(key), list):
        raise BadRecord("wrong_type", f"{key}: expected a list of pictures, found {json_type(record.get(key))}")
    return [picture_of(picture, f"{key}[{number}]", root) for number, picture in enumerate(record[key])]


def picture_of(picture: Any, key: str, root: str) -> Data:
    """Bytes of an image, or its path under the folder or URL `root`. Raises BadRecord."""
    path = None
    if isinstance(picture, dict):
        picture, path = picture.get("bytes"), picture.get("path")
    if picture is None and path is not None:
        return place_of(path, key, root)
    if picture is None:
        raise BadRecord("missing_key", f"{key}: the row has no picture bytes")
    if not isinstance(picture, bytes):
        raise BadRecord("wrong_type", f"{key}: expected bytes, found {json_type(picture)}")
    return picture


def place_of(path: Any, key: str, root: str) -> Path | str:
    """Path of an image that a row does not embed. Raises BadRecord `unsafe_path`, with a remedy, if it is not below
    `root`."""
    name = decode_utf8(path) if isinstance(path, bytes) else path
    if isinstance(name, str) and "://" not in root and os.path.isabs(name):
        below = os.path.relpath(os.path.normpath(name), os.path.abspath(root))
        name = name if below.startswith("..") else below
    try:
        return path_of(name, key, root)
    except BadRecord as bad:
        raise BadRecord(
            bad.reason,
            f"{key}: the row has no picture bytes, and its path {str(name)[:200]!r} is not in {root}; pass --image-root, or save "
            "the dataset with its pictures (save_to_disk of `datasets` does)",
        ) from bad


def with_text(value: Any) -> Any:
    """A column's value, its bytes decoded as UTF-8. Raises BadRecord `invalid_utf8`."""
    if isinstance(value, bytes):
        return decode_utf8(value)
    if isinstance(value, dict):
        return {key: with_text(entry) for key, entry in value.items()}
    return [with_text(entry) for entry in value] if isinstance(value, list) else value


def records_of(batch: Any) -> list[dict[str, Any]]:
    """Rows of an Arrow record batch; text stays bytes, so that one invalid string does not spoil its batch."""
    columns = {name: batch.column(name) for name in batch.schema.names if name in COLUMNS}
    rows = {name: values_of(column, name in PICTURES) for name, column in columns.items()}
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def values_of(column: Any, is_picture: bool) -> list[Any]:
    """Values of a column; an image given as text is a path. Invalid JSON in a JSON column becomes a BadRecord."""
    kind = column.type
    values = (column.storage if is_json(kind) else column).cast(_as_bytes(kind)).to_pylist()
    if _has_json(kind):
        values = [_with_json(value, kind) for value in values]
    if is_picture and _is_text(kind):
        return [value if value is None else {"path": value} for value in values]
    if is_picture and hasattr(kind, "value_type") and _is_text(kind.value_type):
        return [value if value is None else [{"path": path} for path in value] for value in values]
    return values


def _with_json(value: Any, kind: Any) -> Any:
    """A value with its JSON decoded, or a BadRecord for invalid JSON."""
    try:
        return _decoded(value, kind)
    except (ValueError, RecursionError) as error:
        return BadRecord("invalid_json", str(error) or "nested too deeply")
    except BadRecord as bad:
        return bad


def _decoded(value: Any, kind: Any) -> Any:
    if value is None or not _has_json(kind):
        return value
    if is_json(kind):
        return from_json(decode_utf8(value))
    if isinstance(value, list):
        return [_decoded(entry, kind.value_type) for entry in value]
    return {field.name: _decoded(value[field.name], field.type) for field in kind}


def _has_json(kind: Any) -> bool:
    """Whether a type contains JSON anywhere."""
    if hasattr(kind, "value_type"):
        return _has_json(kind.value_type)
    return is_json(kind) or (
        hasattr(kind, "num_fields") and any(_has_json(kind.field(at).type) for at in range(kind.num_fields))
    )


def is_json(kind: Any) -> bool:
    """Whether an Arrow type is the JSON extension type."""
    return getattr(kind, "extension_name", "") == "arrow.json"


def _is_text(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)


def _as_bytes(kind: Any) -> Any:
    import pyarrow

    if is_json(kind):
        return _as_bytes(kind.storage_type)
    if _is_text(kind):
        return pyarrow.large_binary()
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return pyarrow.large_list(_as_bytes(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return kind
