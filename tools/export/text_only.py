"""The text path of a model as a plain folder of its base's family, for tools without Uni-X support.

A text token sees the text branch and shared layers alone, in whatever kinds of layers, so their weights are a whole
language model. Rows of picture codes, vision weights, code files and keys of Uni-X are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model.families import FAMILIES, family_of

KEPT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "eos_token_id",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "max_position_embeddings",
    "rope_scaling",
)
LEFT_OUT = (
    "vocab_size",
    "image_token_offset",
    "codebook_size",
    "vision_start_token_id",
    "vision_end_token_id",
    "layer_kinds",
    "attention_bias",
    "qk_norm",
)
"""What a plain folder says in its own way, or has not."""


def plain_configuration(config, dtype: str) -> dict:
    """config.json of the plain folder."""
    family = family_of(config)
    return {
        "architectures": [FAMILIES[family].causal_lm],
        "model_type": family,
        "vocab_size": config.image_token_offset,
        "hidden_act": "silu",
        "bos_token_id": None,
        "dtype": dtype,
        **{name: getattr(config, name) for name in KEPT},
        **FAMILIES[family].says,
        **({"rope_scaling": config.rope_scaling} if config.rope_scaling else {}),
    }


def is_of_text(name: str) -> bool:
    """Whether a Hugging Face weight of Uni-X belongs to the text path."""
    return ".vision_layers." not in name


def of_text(config, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(Hugging Face name, tensor) pairs -> those of the plain folder, without the rows of image tokens."""
    for name, tensor in weights:
        if is_of_text(name):
            rows = name in ("model.embed_tokens.weight", "lm_head.weight")
            yield name, tensor[: config.image_token_offset].contiguous() if rows else tensor


def write_card(folder: Path, config, history: str, words: str) -> None:
    """Write the plain folder's README.md; `words` is the line on the licence of the text part."""
    family = family_of(config)
    licence = words or "- Text weights and tokenizer: that of whoever made the tokenizer and the data."
    (folder / "README.md").write_text(
        f"""---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: see-the-card
---
# Text path of a Uni-X model

A plain `{FAMILIES[family].causal_lm}` (`model_type` {json.dumps(family)}): the text branch and the shared layers of a Uni-X model
(arXiv 2509.24365) {history}. On text it computes what the whole model computes. It reads and draws no
pictures, and has no rows for their codes; the whole model is exported without `--text-only`.

```python
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1] if len(sys.argv) > 1 else "."
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
print(tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=16)[0]))
```

Needs torch and transformers 4.57 or newer.

## Licences

{licence}
""",
        encoding="utf-8",
    )
