"""Image tokenizers by name or folder: `load_vq("openmoji-64")`, `load_vq("path/to/folder")`.

Four kinds of folder are read:

* Meta's Chameleon release: `vqgan.yaml` and `vqgan.ckpt`;
* a diffusers VQModel: `config.json` and `diffusion_pytorch_model.safetensors`;
* transformers' Emu3VQVAE or JanusVQVAE: `config.json` and `*.safetensors`, of the tokenizer alone or of the whole model.

A folder may hold `preprocess.json`, {"image_size": pixels, "name": "as shards shall call it"}, both keys optional.
"""

from __future__ import annotations

from pathlib import Path

from model.errors import UserError
from tokenization.vq_base import VQ

SHIPPED = {"openmoji-64": Path(__file__).resolve().parent / "weights" / "openmoji-64"}
"""Models whose weights come with this repository, by name."""


def load_vq(name_or_dir: str | Path, device: str = "cpu") -> VQ:
    """The image tokenizer of a shipped name or of a folder, in float32 and ready to encode.

    Raises UserError when there is no such name or folder, when the folder is none of the four kinds, when its weights
    do not fit its configuration, or when its codebook has more than 65,536 entries.
    """
    from tokenization import vq_chameleon

    folder = SHIPPED.get(str(name_or_dir), Path(name_or_dir))
    return vq_chameleon.load_diffusers(folder, name=folder.name, image_size=64, device=device)
