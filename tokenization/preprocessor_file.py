"""Keys of an image tokenizer's preprocessor_config.json: without effect (with the reason), equal to ours, or refused.

tokenization/preprocess.py is the same for every tokenizer, and the manifest of the shards records it. The file is checked so
that a setting for other preprocessing is not ignored silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from tokenization.vq_files import read_json

FILE = "preprocessor_config.json"
HALVES = [0.5, 0.5, 0.5]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

PLAIN: dict[str, tuple] = {
    "image_mean": (HALVES, CLIP_MEAN),
    "image_std": (HALVES, CLIP_STD),
    "do_normalize": (True,),
    "do_rescale": (True,),
    "do_convert_rgb": (True,),
    "rescale_factor": (1 / 255,),
}
"""Keys that change pixels -> the values that may stand there; null is always one.

Pixels are in -1..1, mean and deviation 0.5: BAAI's image processor, with which Emu3's tokenizer was trained, and what
Janus' decoder writes. transformers 4.57.6 and 5.24.0 write CLIP's mean and deviation where nothing was said (Emu3), and
Janus' file describes the pictures of its other encoder, so CLIP's say nothing about the tokenizer.
"""

HARMLESS: dict[str, tuple[str, ...]] = {
    "notes of whoever saved the folder": (
        "image_processor_type",
        "processor_class",
        "feature_extractor_type",
        "auto_map",
        "_processor_class",
        "_valid_processor_keys",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
    ),
    "the size of pictures is that of the shards (preprocess.json, --image-size)": (
        "do_resize",
        "size",
        "min_size",
        "max_pixels",
        "min_pixels",
        "spatial_factor",
        "do_center_crop",
        "crop_size",
        "default_to_square",
        "size_divisor",
    ),
    "pictures are made smaller by one filter, whatever the tokenizer": ("resample",),
    "pictures become square by cutting, so nothing is filled": (
        "do_pad",
        "background_color",
        "pad_size",
        "padding_mode",
        "high_res_resample",
    ),
    "of Janus' other encoder, which describes pictures": ("num_image_tokens", "image_seq_length"),
}
"""Reason -> the keys that change no pixels here, for it."""

WITHOUT_EFFECT = {key: reason for reason, keys in HARMLESS.items() for key in keys}


def check_preprocessor(folder: Path) -> None:
    """Raises UserError, in one line, for a key of the folder's file, if it has one, that asks for other preprocessing
    or is unknown."""
    path = folder / FILE
    if not path.is_file():
        return
    for key, value in read_json(path).items():
        if value is None or key in WITHOUT_EFFECT:
            continue
        if key not in PLAIN:
            raise UserError(
                f"{path}: {key} ({repr(value)[:60]}) is not known, and may change pixels: remove it if it does not"
            )
        if not any(_same(value, plain) for plain in PLAIN[key]):
            raise UserError(
                f"{path}: {key} is {value!r}: pictures come as RGB in -1..1 (mean and deviation 0.5): remove the key if the "
                "tokenizer was trained on such, take another tokenizer if not"
            )


def _same(value: Any, plain: Any) -> bool:
    """Whether values are equal, numbers within rounding."""
    if isinstance(plain, list):
        return isinstance(value, list) and len(value) == len(plain) and all(map(_same, value, plain))
    if isinstance(plain, bool) or isinstance(value, bool):
        return value is plain
    return isinstance(value, int | float) and abs(value - plain) < 1e-6
