"""The VQGAN of exports is diffusers' VQModel, to the last bit, in both directions."""

from __future__ import annotations

import json

import pytest
import torch

from model.hf.vq_uni_x import FAMILIES, VQGAN, encode_emu3, open_picture_tokenizer

SHAPES = {
    "as in tests": {"block_out_channels": [32, 32], "latent_channels": 4, "sample_size": 16, "num_vq_embeddings": 32},
    "chameleon's form": {
        "block_out_channels": [32, 32, 64],
        "layers_per_block": 2,
        "latent_channels": 8,
        "vq_embed_dim": 6,
        "num_vq_embeddings": 64,
        "sample_size": 32,
        "norm_num_groups": 16,
    },
    "no attention": {"block_out_channels": [32, 64], "mid_block_add_attention": False, "num_vq_embeddings": 16},
}


def vq_model(folder, **config) -> torch.nn.Module:
    from diffusers import VQModel

    levels = len(config["block_out_channels"])
    torch.manual_seed(0)
    model = VQModel(
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels, **config
    ).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)  # as wide as the latents: else ties are a matter of rounding
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_codes_and_pixels_are_those_of_diffusers(tmp_path, config):
    theirs, family = vq_model(tmp_path, **config), FAMILIES["VQModel"]
    ours = open_picture_tokenizer(str(tmp_path), "VQModel")
    assert isinstance(ours, VQGAN) and not isinstance(theirs, VQGAN)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = family.encode(theirs, pixels)
    assert torch.equal(family.encode(ours, pixels), codes) and len(codes.unique()) > 2
    assert torch.equal(family.decode(ours, codes), family.decode(theirs, codes))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_layouts_in_memory_are_those_of_diffusers(tmp_path, config):
    """A kernel for channels_last sums in another order, on some processors only: strides say so on all of them."""
    theirs, ours = vq_model(tmp_path, **config), open_picture_tokenizer(str(tmp_path), "VQModel")
    strides: dict[str, list[tuple]] = {}
    for model in (theirs, ours):
        for name, module in model.named_modules():
            if name.startswith("decoder.") and isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
                module.register_forward_hook(
                    lambda _, inputs, output, name=name: strides.setdefault(name, []).append(
                        (inputs[0].stride(), output.stride())
                    )
                )
    codes = torch.randint(0, 16, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    for model in (theirs, ours):
        FAMILIES["VQModel"].decode(model, codes)
    assert strides and all(len(both) == 2 and both[0] == both[1] for both in strides.values()), strides


def test_what_only_diffusers_has_is_named_where_it_is_missing(tmp_path, monkeypatch):
    vq_model(tmp_path, **SHAPES["as in tests"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_vq_embeddings": 33}))
    with pytest.raises(ValueError, match="does not belong to its config.json"):
        open_picture_tokenizer(str(tmp_path), "VQModel")
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_type": "spatial"}))
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match="install diffusers 0.35.2"):
        open_picture_tokenizer(str(tmp_path), "VQModel")


@torch.no_grad()
def test_emu3_reads_pictures_in_every_version_of_transformers():
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(0)
    model = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=64,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[1],
            hidden_size=64,
            temporal_downsample_factor=4,
        )
    ).eval()
    codes = encode_emu3(model, torch.rand(2, 3, 16, 16) * 2 - 1)
    assert codes.shape == (2, 8, 8) and codes.dtype == torch.int64
