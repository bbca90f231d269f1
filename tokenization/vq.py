"""Image tokenizers by name or folder: `load_vq("openmoji-64")`, `load_vq("path/to/folder")`.

`FORMS` are the folders that are read. A new image tokenizer is a module with a `VQ` and what loads it, an entry there and
in `LICENCES`, and what exports need of it in `model/hf/vq_uni_x.py`.

Any folder may hold `preprocess.json`, {"image_size": pixels, "name": "what manifests call it"}, both keys optional. The
default size is the one that the model's own configuration gives, the default name is the folder's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.system.errors import UserError
from tokenization.vq_base import VQ
from tokenization.vq_files import read_json


@dataclass(frozen=True)
class Form:
    """One folder format of image tokenizers."""

    what: str  # for the error of an unknown folder
    is_it: Callable[[Path, dict], bool]  # of the folder and its config.json, {} where it has none
    load: str  # "module:function", of (folder, name, image_size or None, device) -> VQ; imported when it is used


def _named(*names: str) -> Callable[[Path, dict], bool]:
    """Whether config.json has one of these classes: `_class_name` of diffusers, `model_type` of transformers."""
    return lambda folder, config: config.get("_class_name", config.get("model_type")) in names


FORMS = (
    Form(
        "Meta's Chameleon release (vqgan.yaml and vqgan.ckpt)",
        lambda folder, config: (folder / "vqgan.yaml").is_file(),
        "tokenization.vq_chameleon:load_chameleon",
    ),
    Form("diffusers' VQModel", _named("VQModel"), "tokenization.vq_chameleon:load_diffusers"),
    Form(
        "transformers' Emu3VQVAE (emu3_vqgan)",
        _named("emu3_vqgan", "emu3"),
        "tokenization.vq_transformers:load_transformers",
    ),
    Form(
        "transformers' JanusVQVAE (janus_vqgan)",
        _named("janus_vqgan", "janus"),
        "tokenization.vq_transformers:load_transformers",
    ),
)
"""Of the last two the whole model's folder is read, too. The first that is it counts."""

LICENCES = {
    "openmoji-64": (
        "cc-by-sa-4.0",
        "made from [OpenMoji](https://openmoji.org) pictures, CC BY-SA 4.0. What is trained on its pictures names OpenMoji and "
        "stays under that licence.",
    ),
    "vqgan": (
        "other",
        "where it is Meta's Chameleon VQGAN, the Chameleon research licence, which forbids commercial use; else that of "
        "whoever trained it.",
    ),
    "emu3": ("other", "that of BAAI's Emu3 release, where it is theirs."),
    "janus": ("other", "that of DeepSeek's Janus release, where it is theirs."),
}
"""By the name of a shipped tokenizer or by family: the card's licence id, and what a model card says. One that is not here is
said to be its maker's."""

SHIPPED = {"openmoji-64": Path(__file__).resolve().parent / "weights" / "openmoji-64"}
"""Models whose weights come with this repository, by name."""


def load_vq(name_or_dir: str | Path, device: str = "cpu") -> VQ:
    """Load an image tokenizer by shipped name or folder, in float32 and evaluation mode.

    A shipped name wins over a folder of that name in the working directory: write `./openmoji-64` for the folder.

    Raises UserError when there is no such name or folder, when the folder is of none of `FORMS`, when its weights
    do not fit its configuration, or when its codebook has more than 65,536 entries.
    """
    folder = find_folder(str(name_or_dir))
    name, image_size = read_preprocess(folder)
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    form = next((form for form in FORMS if form.is_it(folder, config)), None)
    if form is None:
        if path.is_file():
            kind = config.get("_class_name", config.get("model_type"))
            known = ", ".join(form.what for form in FORMS)
            raise UserError(f"{path}: it describes {kind!r}; image tokenizers are {known}")
        raise UserError(
            f"{folder}: neither vqgan.yaml (Chameleon's release) nor config.json (diffusers, transformers) is in it"
        )
    module, function = form.load.split(":")
    load = getattr(importlib.import_module(module), function)
    return load(folder, name=name, image_size=image_size, device=device)


def find_folder(name_or_dir: str) -> Path:
    """Folder of a shipped name, or that folder itself. Raises UserError with the shipped names if there is none."""
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
    """Name and image size of a folder's preprocess.json; the folder's own name and None where it lacks them."""
    path = folder / "preprocess.json"
    settings = read_json(path) if path.is_file() else {}
    name, image_size = settings.get("name", folder.resolve().name), settings.get("image_size")
    if not isinstance(name, str) or not (image_size is None or (type(image_size) is int and image_size > 0)):
        raise UserError(f"{path}: name must be a string and image_size a positive number of pixels, found {settings}")
    return name, image_size
