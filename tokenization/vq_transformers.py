"""Emu3's and Janus's image tokenizers, by their transformers classes Emu3VQVAE and JanusVQVAE.

Both take pixels in -1..1, which is mean 0.5 and standard deviation 0.5: the defaults of BAAI's image processor for the
tokenizer, and the range that DeepSeek's decoder writes. The folder's preprocessor_config.json sets nothing here, and what it
may say is in tokenization/preprocessor_file.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.stored_tensors import stored_tensors_of
from pretrain.system.errors import UserError
from tokenization.preprocessor_file import check_preprocessor
from tokenization.vq_base import VQ
from tokenization.vq_files import check_settings, in_one_line, load_exactly, read_json, read_safetensors

if TYPE_CHECKING:
    import torch

    from tokenization.batches import Settled

WHOLE_MODEL_PREFIXES = ("model.vqmodel.", "vqmodel.")
"""Where Emu3ForConditionalGeneration and JanusForConditionalGeneration keep the tokenizer, in new and older files."""


class Emu3VQ(VQ):
    """Emu3's image tokenizer (arXiv 2409.18869, section 2.2): 32,768 codes, 8 x 8 pixels each, made for video.

    A picture is a clip of `temporal_downsample_factor` equal frames, which the encoder folds into one grid of codes;
    the decoder unfolds as many frames, and the first is the picture. transformers' `encode` and `decode` do both for
    input without a time axis, and so does BAAI's release. Its image processor starts at 512 px, hence the default size.
    """

    family = "emu3"

    def __init__(self, model: Any, *, name: str, image_size: int | None = None, device: str = "cpu"):
        super().__init__(
            model,
            name=name,
            codebook_size=model.config.codebook_size,
            downsample=model.vision_spatial_factor,
            image_size=image_size or 512,
            device=device,
        )

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import encode_emu3

        return encode_emu3(self.model, pixels)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import decode_emu3

        return decode_emu3(self.model, codes)

    def _architecture(self) -> dict[str, Any]:
        keys = ("num_attention_heads", "temporal_downsample_factor")
        return {key: getattr(self.model.config, key) for key in keys}


class JanusVQ(VQ):
    """Janus's image tokenizer for generation (arXiv 2410.13848, LlamaGen's VQ): 16,384 codes, 16 x 16 pixels each.

    Only square grids of `num_patches` codes a side fit (24 in the released models, 384 px): its decoder checks.

    DeepSeek's release compares latents and codebook on the unit sphere (LlamaGen, arXiv 2406.06525, section 3.1), and
    transformers' `decode` normalises the codebook too, but transformers 4.57's `encode` compares the raw vectors and so
    picks other codes than the model was trained with. This class encodes as the release does.
    """

    family = "janus"
    in_batches = True

    def __init__(self, model: Any, *, name: str, image_size: int | None = None, device: str = "cpu"):
        downsample = 2 ** (len(model.config.channel_multiplier) - 1)
        super().__init__(
            model,
            name=name,
            codebook_size=model.config.num_embeddings,
            downsample=downsample,
            image_size=image_size or model.config.num_patches * downsample,
            device=device,
        )
        self._check_grid(self.image_size // downsample, self.image_size // downsample)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import encode_janus

        return encode_janus(self.model, pixels)

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.quant_conv(self.model.encoder(pixels)).permute(0, 2, 3, 1)

    def _codes(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents @ self._directions().T).argmax(-1)

    def _settle(self, latents: torch.Tensor) -> Settled:
        from tokenization.batches import largest_two

        return largest_two(latents, self._directions())

    def _directions(self) -> torch.Tensor:
        import torch

        return torch.nn.functional.normalize(self.model.quantize.embedding.weight, dim=-1)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        from model.hf.vq_uni_x import decode_janus

        return decode_janus(self.model, codes)

    def _architecture(self) -> dict[str, Any]:
        return {}

    def _check_grid(self, rows: int, columns: int) -> None:
        side = self.model.config.num_patches
        if (rows, columns) != (side, side):
            raise UserError(
                f"VQ model {self.name!r} takes grids of {side} x {side} codes ({side * self.downsample} px), not "
                f"{rows} x {columns}; change num_patches in its config.json to use it at another size"
            )


FAMILIES = {"emu3": (Emu3VQ, "Emu3VQVAE"), "janus": (JanusVQ, "JanusVQVAE")}
"""By `model_type` of the whole model: the class here, and transformers' class."""


def family_of(config: dict[str, Any]) -> str:
    """Which of FAMILIES a config.json is of, whether of the tokenizer alone or of a whole model."""
    return config["model_type"].removesuffix("_vqgan")


def load_transformers(folder: Path, *, name: str, image_size: int | None, device: str) -> VQ:
    """Load Emu3VQVAE or JanusVQVAE from config.json and safetensors, of the tokenizer alone or of a whole released
    model.

    Of a whole model only the tokenizer's settings and tensors are read. UserError when there are no safetensors, when they
    do not fit, or for a setting that the class would ignore.
    """
    from pretrain.system.light_imports import leave_torchvision_out

    leave_torchvision_out()
    import transformers

    config = read_json(folder / "config.json")
    family = family_of(config)
    ours, theirs = FAMILIES[family]
    model_class, config_class = getattr(transformers, theirs), getattr(transformers, f"{theirs}Config")
    whole = config["model_type"] == family
    stored = stored_tensors_of(folder)
    if not stored:
        raise UserError(f"{folder}: there are no safetensors in it; write the folder with {theirs}.save_pretrained")
    state: dict[str, torch.Tensor] = {}
    for file in sorted(set(stored.values())):
        state |= read_safetensors(file, WHOLE_MODEL_PREFIXES if whole else ("",))
    settings = config.get("vq_config", {}) if whole else config
    check_settings(settings, config_class().to_dict().keys(), folder / "config.json")
    check_preprocessor(folder)
    try:
        model = model_class(config_class.from_dict(settings))
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{folder / 'config.json'}: {theirs} cannot be built from it ({in_one_line(error)})") from error
    load_exactly(model, state, folder)
    return ours(model, name=name, image_size=image_size, device=device)
