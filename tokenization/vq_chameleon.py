"""Chameleon's VQGAN as diffusers' VQModel, from Meta's released files or from a diffusers folder.

Chameleon (arXiv 2405.09818, section 2.1) took its image tokenizer from Make-A-Scene (arXiv 2203.13131): a VQGAN (arXiv
2012.09841) in the layout of taming-transformers. diffusers' VQModel is that architecture, encoder and decoder. The
state dicts differ by names, by the order of the decoder's levels, and by the shape of the attention's 1x1 convolutions,
which diffusers holds as linear layers. Pixels are in -1..1, as in the original.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.system.errors import UserError
from tokenization.vq_base import VQ
from tokenization.vq_files import check_settings, in_one_line, load_exactly, read_json, read_safetensors

if TYPE_CHECKING:
    import torch

    from tokenization.batches import Settled

CHAMELEON_CONFIG, CHAMELEON_WEIGHTS = "vqgan.yaml", "vqgan.ckpt"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"

RENAMES = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("nin_shortcut.", "conv_shortcut."),
    ("norm_out.", "conv_norm_out."),
)
"""Parts of taming-transformers' names and what diffusers calls them, apart from the levels (`renames`)."""

OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""diffusers' own names for attention in folders saved before 0.17; 0.35.2 and 0.42.1 read them, too."""

TRAINING_ONLY = ("loss.",)
"""Prefixes of tensors that a released checkpoint may hold beside the model: the discriminator and LPIPS."""


class ChameleonVQ(VQ):
    """A diffusers VQModel: Chameleon's own, or another of the same architecture."""

    family = "vqgan"
    in_batches = True

    def __init__(self, model: Any, *, name: str, image_size: int | None = None, device: str = "cpu"):
        super().__init__(
            model,
            name=name,
            codebook_size=model.config.num_vq_embeddings,
            downsample=2 ** (len(model.config.block_out_channels) - 1),
            image_size=image_size or model.config.sample_size,
            device=device,
        )

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import encode_vqgan

        return encode_vqgan(self.model, pixels)

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode(pixels).latents.permute(0, 2, 3, 1)

    def _codes(self, latents: torch.Tensor) -> torch.Tensor:
        _, _, (_, _, codes) = self.model.quantize(latents.permute(0, 3, 1, 2))
        return codes.view(latents.shape[:3])

    def _settle(self, latents: torch.Tensor) -> Settled:
        from tokenization.batches import nearest_two

        return nearest_two(latents, self.model.quantize.embedding.weight)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import decode_vqgan

        return decode_vqgan(self.model, codes)

    def _architecture(self) -> dict[str, Any]:
        keys = ("act_fn", "norm_num_groups", "norm_type", "down_block_types", "up_block_types")
        return {key: self.model.config[key] for key in keys}


def load_diffusers(folder: Path, *, name: str, image_size: int | None, device: str) -> ChameleonVQ:
    """Load a diffusers VQModel folder. `image_size` None means the config's sample_size. Raises UserError for what does
    not fit."""
    weights = folder / DIFFUSERS_WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder}: there is no {DIFFUSERS_WEIGHTS}; write the folder with VQModel.save_pretrained")
    config = {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith("_")}
    model = build_model(config, folder / "config.json")
    state = {_newest_name(key): tensor for key, tensor in read_safetensors(weights).items()}
    load_exactly(model, state, weights)
    return ChameleonVQ(model, name=name, image_size=image_size, device=device)


def _newest_name(key: str) -> str:
    """Current diffusers name of a VQModel tensor."""
    old = next((old for old in OLD_ATTENTION if ".attentions." in key and old in key), None)
    return key.replace(old, OLD_ATTENTION[old]) if old else key


def load_chameleon(folder: Path, *, name: str, image_size: int | None, device: str) -> ChameleonVQ:
    """Load Meta's released folder, vqgan.yaml and vqgan.ckpt. `image_size` None means the yaml's resolution.

    UserError when a file is missing or damaged, when the yaml asks for what VQModel does not have, or when a tensor is
    missing, unexpected or of another shape. The discriminator's tensors are left out.
    """
    path = folder / CHAMELEON_WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: there is {CHAMELEON_CONFIG} but no {CHAMELEON_WEIGHTS}; copy both into the folder")
    config = diffusers_config(folder / CHAMELEON_CONFIG)
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: there is no state_dict in it; it is not a released VQGAN checkpoint")
    model = build_model(config, folder / CHAMELEON_CONFIG)
    load_exactly(model, diffusers_state(state, levels=len(config["block_out_channels"])), path)
    return ChameleonVQ(model, name=name, image_size=image_size, device=device)


def read_checkpoint(path: Path) -> Any:
    """Load a torch file without executing code from it. Raises UserError if that is refused or impossible."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own for a damaged or unsafe file
        # torch's message has ten lines and advises to trust the file: only the object's name is taken from it
        objects = re.search(r"GLOBAL (\S+)", str(error))
        if objects:
            raise UserError(
                f"{path}: beside tensors it holds Python objects ({objects[1]}), which weights_only loading refuses; "
                'save {"state_dict": ...} alone with torch.save'
            ) from error
        raise UserError(f"{path}: torch.load cannot read it; copy or download it again") from error


def build_model(config: dict[str, Any], source: Path) -> torch.nn.Module:
    """VQModel of this diffusers config with random weights; `source` is the file named in errors."""
    from pretrain.system.light_imports import vq_model

    VQModel = vq_model()
    check_settings(config, inspect.signature(VQModel.__init__).parameters.keys(), source)
    try:
        return VQModel.from_config(config)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{source}: diffusers' VQModel cannot be built from it ({in_one_line(error)})") from error


def diffusers_config(path: Path) -> dict[str, Any]:
    """VQModel configuration for a released vqgan.yaml. Raises UserError for a setting that VQModel does not have."""
    import yaml

    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        layers = params["ddconfig"]
        widths = [layers["ch"] * factor for factor in layers["ch_mult"]]
        config = {
            "in_channels": layers["in_channels"],
            "out_channels": layers["out_ch"],
            "block_out_channels": widths,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "layers_per_block": layers["num_res_blocks"],
            "latent_channels": layers["z_channels"],
            "sample_size": layers["resolution"],
            "num_vq_embeddings": params["n_embed"],
            "vq_embed_dim": params["embed_dim"],
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a released VQGAN configuration ({in_one_line(error)})") from error
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing; is it the released vqgan.yaml?") from error
    if layers.get("attn_resolutions"):
        raise UserError(
            f"{path}: attn_resolutions is {layers['attn_resolutions']}, but only [] (attention in the middle block "
            "alone, as in Chameleon) is supported"
        )
    if layers.get("double_z"):
        raise UserError(f"{path}: double_z is true, which belongs to a KL autoencoder and not to a VQGAN")
    return config


def diffusers_state(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """A released state dict under diffusers' names, its 1x1 attention convolutions as matrices [out, in]."""
    rules = renames(levels)
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(TRAINING_ONLY):
            continue
        for old, new in rules:
            key = key.replace(old, new)
        if ".attentions." in key and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        renamed[key] = tensor
    return renamed


def renames(levels: int) -> list[tuple[str, str]]:
    """RENAMES and the rules of a model of this many levels; diffusers counts the decoder's levels in reverse."""
    rules = list(RENAMES)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}.", f"decoder.up_blocks.{levels - 1 - level}."
        rules += [
            (f"encoder.down.{level}.block.", f"{down}resnets."),
            (f"encoder.down.{level}.downsample.", f"{down}downsamplers.0."),
            (f"decoder.up.{level}.block.", f"{up}resnets."),
            (f"decoder.up.{level}.upsample.", f"{up}upsamplers.0."),
        ]
    return rules
