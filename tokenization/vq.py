"""Image tokenizers by name or folder: `load_vq("openmoji-64")`, `load_vq("path/to/folder")`.

Folders of four kinds are read:

* Meta's Chameleon release: `vqgan.yaml` and `vqgan.ckpt`;
* a diffusers VQModel: `config.json` and `diffusion_pytorch_model.safetensors`;
* transformers' Emu3VQVAE or JanusVQVAE: `config.json` and safetensors, of the tokenizer alone or of the whole model.

Any of them may hold `preprocess.json`, {"image_size": pixels, "name": "what manifests call it"}, both keys optional.
The default size is the one that the model's own configuration gives, the default name is the folder's.
"""

from __future__ import annotations

from pathlib import Path

from model.errors import UserError
from tokenization.vq_base import VQ
from tokenization.vq_files import read_json

SHIPPED = {"openmoji-64": Path(__file__).resolve().parent / "weights" / "openmoji-64"}
"""Models whose weights come with this repository, by name."""


def load_vq(name_or_dir: str | Path, device: str = "cpu") -> VQ:
    """The image tokenizer of a shipped name or of a folder, in float32 and ready to encode.

    A shipped name wins over a folder of that name in the working directory: write `./openmoji-64` for the folder.

    Raises UserError when there is no such name or folder, when the folder is none of the kinds above, when its weights
    do not fit its configuration, or when its codebook has more than 65,536 entries.
    """
    from tokenization import vq_chameleon, vq_transformers

    folder = find_folder(str(name_or_dir))
    name, image_size = read_preprocess(folder)
    if (folder / vq_chameleon.CHAMELEON_CONFIG).is_file():
        load = vq_chameleon.load_chameleon
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        kind = config.get("_class_name", config.get("model_type"))
        if kind == "VQModel":
            load = vq_chameleon.load_diffusers
        elif vq_transformers.family_of(config):
            load = vq_transformers.load_transformers
        else:
            raise UserError(
                f"{folder / 'config.json'}: it describes {kind!r}; image tokenizers are diffusers' VQModel, "
                "transformers' Emu3VQVAE (emu3_vqgan) and JanusVQVAE (janus_vqgan)"
            )
    else:
        raise UserError(
            f"{folder}: neither vqgan.yaml (Chameleon's release) nor config.json (diffusers, transformers) is in it"
        )
    return load(folder, name=name, image_size=image_size, device=device)


def find_folder(name_or_dir: str) -> Path:
    """The folder of a shipped name, or that folder itself; UserError listing the shipped names if there is none."""
    folder = SHIPPED.get(name_or_dir, Path(name_or_dir))
    if folder.is_dir():
        return folder
    shipped = ", ".join(SHIPPED)
    if name_or_dir in SHIPPED:
        raise UserError(
            f"the weights of VQ model {name_or_dir!r} are not in {folder}; restore that folder from the repository, or "
            f"name another model (shipped: {shipped}) or a folder"
        )
    raise UserError(f"no VQ model {name_or_dir!r}: it is neither a folder nor a shipped name ({shipped})")


def read_preprocess(folder: Path) -> tuple[str, int | None]:
    """Name and image size of a folder's preprocess.json; the folder's own name and None where it does not say."""
    path = folder / "preprocess.json"
    settings = read_json(path) if path.is_file() else {}
    name, image_size = settings.get("name", folder.resolve().name), settings.get("image_size")
    if not isinstance(name, str) or not (image_size is None or (type(image_size) is int and image_size > 0)):
        raise UserError(f"{path}: name must be a string and image_size a positive number of pixels, found {settings}")
    return name, image_size
