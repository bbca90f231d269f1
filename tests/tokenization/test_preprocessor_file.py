"""Every key of a preprocessor_config.json is without effect for a reason, or refused by name."""

from __future__ import annotations

import json

import pytest

from pretrain.system.errors import UserError
from tests.tokenization.vq_folders import tiny_emu3, tiny_janus
from tokenization.preprocessor_file import (
    CLIP_MEAN,
    CLIP_STD,
    FILE,
    HARMLESS,
    PLAIN,
    WITHOUT_EFFECT,
    check_preprocessor,
)
from tokenization.vq import load_vq

SAVED_BY_5 = {
    "emu3": {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "Emu3ImageProcessor",
        "image_std": CLIP_STD,
        "max_pixels": 1048576,
        "min_pixels": 262144,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"max_pixels": 1048576, "min_pixels": 262144},
        "spatial_factor": 8,
    },
    "janus": {
        "background_color": [122, 116, 104],
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "JanusImageProcessor",
        "image_std": CLIP_STD,
        "min_size": 14,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
    },
}
"""As Emu3ImageProcessor and JanusImageProcessor of transformers 5.24.0 write them."""


def saved_by_4(family: str) -> dict:
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
    from transformers.models.janus.image_processing_janus import JanusImageProcessor

    return json.loads({"emu3": Emu3ImageProcessor, "janus": JanusImageProcessor}[family]().to_json_string())


@pytest.mark.parametrize("family", SAVED_BY_5)
@pytest.mark.parametrize("version", [4, 5])
def test_what_transformers_writes_comes_in_and_every_key_is_known(family, version, tmp_path):
    (tiny_emu3() if family == "emu3" else tiny_janus()).save_pretrained(tmp_path)
    alone = load_vq(tmp_path)
    values = saved_by_4(family) if version == 4 else SAVED_BY_5[family]
    (tmp_path / FILE).write_text(json.dumps(values))
    assert load_vq(tmp_path).fingerprint == alone.fingerprint
    for key in values:
        assert (key in PLAIN) + (key in WITHOUT_EFFECT) == 1, key
        if key in PLAIN:
            (tmp_path / FILE).write_text(json.dumps({**values, key: "another"}))
            with pytest.raises(UserError, match=f"{FILE}: {key} is 'another'"):
                load_vq(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.0, 0.0, 0.0]),
        ("image_std", [1, 1, 1]),
        ("image_mean", 0.5),
        ("do_normalize", False),
        ("do_rescale", 1),
        ("rescale_factor", 1.0),
        ("do_flip_channel_order", True),
    ],
)
def test_what_asks_for_other_pixels_is_one_line(key, value, tmp_path):
    (tmp_path / FILE).write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=f"{FILE}: {key} ") as error:
        check_preprocessor(tmp_path)
    assert "\n" not in str(error.value) and "remove" in str(error.value)


def test_the_lists_do_not_overlap():
    keys = [key for some in (*HARMLESS.values(), tuple(PLAIN)) for key in some]
    assert len(keys) == len(set(keys))
