"""Loading of images from paths, URLs and arrays; checks of messages; padding of batches. Imports PIL, numpy, torch and
transformers."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

BATCHING = (
    "truncation",
    "padding",
    "max_length",
    "padding_side",
    "truncation_side",
    "pad_to_multiple_of",
    "return_tensors",
)
# arguments of transformers without effect: Qwen's tokenizers add no special tokens, a mask is always made
WITHOUT_EFFECT = (
    "add_special_tokens",
    "return_attention_mask",
    "return_token_type_ids",
    "return_mm_token_type_ids",
    "verbose",
    "load_audio_from_video",
    "video_fps",
    "num_frames",
    "sampling_rate",
    "do_rescale",
    "padding_mode",
)
LARGEST_DOWNLOAD = 64 * 2**20  # bytes


def open_picture(source) -> Image.Image:
    """Open an image: PIL, a path, an http(s) or data: URL, or an array or tensor, [H, W], [H, W, 1, 3 or 4] or channels
    first.

    Numbers are integers of 0 to 255, or floats of 0 to 1. Raises ValueError for what is none of these or cannot be read.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        return _from_bytes(source, "the bytes of a picture")
    if not isinstance(source, str | Path):
        raise ValueError(
            f"a picture is given as {type(source).__name__}: give one of PIL, a path, a URL, an array or a tensor"
        )
    name = str(source)
    if name.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(name, timeout=60) as answer:
                data = answer.read(LARGEST_DOWNLOAD + 1)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: cannot be fetched ({error}): check the address") from error
        if len(data) > LARGEST_DOWNLOAD:
            raise ValueError(f"{name}: has more than {LARGEST_DOWNLOAD >> 20} MiB: give a smaller picture")
        return _from_bytes(data, name)
    if name.startswith("data:"):
        return _from_bytes(base64.b64decode(name.partition(",")[2]), "a data: URL")
    path = Path(name.removeprefix("file://"))
    if not path.is_file():
        raise ValueError(f"{name}: there is no such picture: give a path, a URL or a picture of PIL")
    return _from_bytes(path.read_bytes(), name)


def _from_bytes(data: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot be read as a picture ({error})") from error
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    shape = list(array.shape)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[-1] not in (3, 4):
        raise ValueError(f"an array of shape {shape} is no picture: give [H, W], [H, W, 3 or 4] or channels first")
    low, high = (float(bound(array)) if array.size else 0.0 for bound in (np.min, np.max))
    largest = 1.0 if np.issubdtype(array.dtype, np.floating) else 255
    if not array.size or not (low >= 0 and high <= largest):
        raise ValueError(
            f"an array of {array.dtype} has values of {low} to {high}: integers of 0 to 255 or floats of 0 to 1"
        )
    if largest == 1.0:
        array = (array * 255).round()
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def texts_of(texts, what: str) -> list[str]:
    """One text or several, as a list. Raises ValueError for anything else: a dictionary would be read as its keys."""
    several = not isinstance(texts, str | Mapping) and hasattr(texts, "__iter__")
    found = list(texts) if several else [texts]
    wrong = next((one for one in found if not isinstance(one, str)), None)
    if wrong is not None or not found or None in found:
        raise ValueError(
            f"{what} is {_shown(wrong)}: give a text or a list of texts" if found else f"{what}: there is none"
        )
    return found


def listed(images) -> list:
    """Images as a list: one becomes a list of one, None an empty list."""
    if images is None:
        return []
    several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    return list(images) if several else [images]


SPOKEN = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "audio",
)  # not in any template here


PICTURE_PARTS = ("image", "image_url")  # types of a message's parts


def check_messages(messages: Sequence[dict]) -> None:
    """Raises ValueError for a malformed list of messages, and for message fields that would be ignored."""
    if isinstance(messages, str | dict) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"a conversation is a list of {{'role': ..., 'content': ...}}, not {_shown(messages)}")
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise ValueError(f"a message has no role: {_shown(message)}: give user, assistant or system")
        if lost := [key for key in SPOKEN if message.get(key)]:
            raise ValueError(f"a message has {lost[0]}, which this model has no form for: write it into the content")
        content = message.get("content", message)  # null is empty
        if not isinstance(content, str | list | tuple | None):
            raise ValueError(f"a message's content is {_shown(content)}: give text, None or a list of parts")
        for item in content if isinstance(content, list | tuple) else ():
            if not isinstance(item, dict) or item.get("type") == "text" and not isinstance(item.get("text"), str):
                raise ValueError(f"a part is {_shown(item)}: give {{'type': 'text', 'text': ...}} or a picture's")
            if item.get("type") not in ("text", *PICTURE_PARTS):
                raise _wrong_part(item)


def _shown(value) -> str:
    text = f"{value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wrong_part(item: dict) -> ValueError:
    return ValueError(
        f"a part of type {item.get('type')!r} with {sorted(set(item) - {'type'})}: give {{'type': 'text', 'text': ...}} or "
        "{'type': 'image', 'image': a picture of PIL, a path or a URL}"
    )


def parts_of_messages(messages: Sequence[dict]) -> list:
    """Texts and images of messages in order. Raises ValueError for a part that is neither."""
    parts: list = []
    for message in messages:
        content = message["content"]
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if item.get("type") == "text":
                parts.append(item["text"])
                continue
            named = [item[key] for key in ("image", "url", "path", "image_url") if item.get(key) is not None]
            if item.get("type") not in PICTURE_PARTS or not named:
                raise _wrong_part(item)
            parts.append(open_picture(named[0]["url"] if isinstance(named[0], dict) else named[0]))
    return parts


def without_pictures(content):
    """A message's content for chat templates, without the images themselves."""
    if content is None or isinstance(content, str):
        return content or ""
    return [item if item.get("type") == "text" else {"type": "image"} for item in content]


def known_options(options: dict) -> dict:
    """Arguments of transformers' calls -> those of `make_batch`. Raises ValueError for an unknown one that is set."""
    options = dict(options)
    for name in ("text_kwargs", "images_kwargs", "common_kwargs", "processor_kwargs", "tokenizer_kwargs"):
        options |= options.pop(name, None) or {}
    unknown = [name for name in options if name not in (*BATCHING, *WITHOUT_EFFECT) and options[name]]
    if unknown:
        raise ValueError(f"{unknown[0]}={options[unknown[0]]!r} is not known here: {', '.join(BATCHING)} are")
    return {
        name: value
        for name, value in options.items()
        if name in BATCHING and value is not None or name == "return_tensors"
    }


def make_batch(
    columns: dict[str, Any],  # rows of numbers
    pad: dict[str, int],
    picture_markers: tuple[int, int],
    *,
    truncation: bool | str | None = None,
    padding: bool | str = True,
    max_length: int | None = None,
    padding_side: str = "left",
    truncation_side: str = "right",
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = "pt",
) -> BatchFeature:
    """Batch rows of ids and their masks: truncated and padded as transformers' tokenizers do.

    `columns` has rows under each name, of equal lengths; `pad` their fillings. Raises ValueError for a cut that would go
    through a picture, and for rows of unequal lengths that are to be a tensor without padding.
    """
    columns = {name: [list(row) for row in rows] for name, rows in columns.items()}
    if truncation and truncation != "do_not_truncate":
        if max_length is None:
            raise ValueError("truncation needs max_length: say how long a row may be")
        for place, ids in enumerate(columns["input_ids"]):
            if len(ids) <= max_length:
                continue
            kept = slice(0, max_length) if truncation_side == "right" else slice(len(ids) - max_length, None)
            start, end = picture_markers
            if ids[kept].count(start) != ids[kept].count(end):
                raise ValueError(
                    f"max_length {max_length} cuts row {place} of {len(ids)} tokens within a picture: raise it, or leave the "
                    "picture out"
                )
            for rows in columns.values():
                rows[place] = rows[place][kept]
    lengths = [len(ids) for ids in columns["input_ids"]]
    width = max_length if padding == "max_length" and max_length else max(lengths)
    if padding and padding != "do_not_pad":
        width = -(-width // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        for name, rows in columns.items():
            for place, row in enumerate(rows):
                filling = [pad[name]] * (width - len(row))
                rows[place] = filling + row if padding_side == "left" else row + filling
    elif return_tensors and len(set(lengths)) > 1:
        raise ValueError(f"rows of {min(lengths)} to {max(lengths)} tokens are no tensor: pass padding=True, too")
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors {return_tensors!r} is not supported: 'pt' or None")
    return BatchFeature(
        columns if return_tensors is None else {name: torch.tensor(rows) for name, rows in columns.items()}
    )
