"""Image tokenizers refuse what does not fit, each fault in one line that names the file or the value."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.system.errors import UserError
from tests.tokenization.vq_folders import GOLDEN, TINY_DIFFUSERS, edited, tiny_janus
from tokenization import vq as vq_module
from tokenization.vq import SHIPPED, load_vq
from tokenization.vq_chameleon import ChameleonVQ, build_model


@pytest.fixture(scope="module")
def golden() -> ChameleonVQ:
    return load_vq(GOLDEN)


@pytest.fixture(scope="module")
def golden_folder(golden, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq") / "saved"
    golden.save(folder)
    return folder


@pytest.fixture(scope="module")
def janus_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq") / "janus"
    tiny_janus().save_pretrained(folder)
    return folder


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((1, 2, 2), 256), "code 256 is outside the codebook of VQ model 'vqgan_a': its codes go from 0 to 255"),
        (np.full((1, 2, 2), -1), "code -1 is outside"),
        (np.zeros((2, 2), np.uint16), r"got uint16 \[2, 2\]"),
        (np.zeros((0, 2, 2), np.uint16), r"got uint16 \[0, 2, 2\]"),
        (np.zeros((1, 2, 2)), "must be integers"),
        (torch.zeros(1, 2, 2), "must be integers"),
    ],
)
def test_codes_that_do_not_fit_are_refused(golden, codes, message):
    with pytest.raises(UserError, match=message):
        golden.decode(codes)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (0, 3, 32, 32)])
def test_misshapen_pixels_are_refused(golden, shape):
    with pytest.raises(UserError, match="must have shape"):
        golden.encode_pixels(torch.zeros(shape))


def test_pictures_that_do_not_fit_the_grid_are_refused(golden, janus_folder):
    with pytest.raises(UserError, match="30 x 32 pixels: both sides must be multiples of 4"):
        golden.encode([Image.new("RGB", (30, 32))])
    with pytest.raises(UserError, match="one size"):
        golden.encode([Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))])
    with pytest.raises(UserError, match="one size"):
        golden.encode([])
    loaded = load_vq(janus_folder)
    with pytest.raises(UserError, match=r"grids of 8 x 8 codes \(16 px\), not 8 x 16"):
        loaded.encode([Image.new("RGB", (32, 16))])
    with pytest.raises(UserError, match="not 4 x 4"):
        loaded.decode(np.zeros((1, 4, 4), np.uint16))


def test_unknown_name_lists_the_shipped_ones(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no VQ model 'openmoji-65': .*openmoji-64"):
        load_vq("openmoji-65")
    monkeypatch.setitem(vq_module.SHIPPED, "openmoji-64", tmp_path / "gone")
    with pytest.raises(UserError, match=r"weights of VQ model 'openmoji-64' are not in .*shipped: openmoji-64"):
        load_vq("openmoji-64")
    assert set(SHIPPED) == {"openmoji-64"}


def test_folders_of_another_kind_are_refused(golden_folder, tmp_path):
    with pytest.raises(UserError, match="neither vqgan.yaml .* nor config.json"):
        load_vq(tmp_path)
    kl = edited(golden_folder, tmp_path / "kl", _class_name="AutoencoderKL")
    with pytest.raises(UserError, match="config.json: it describes 'AutoencoderKL'"):
        load_vq(kl)
    llama = edited(golden_folder, tmp_path / "llama", _class_name=None, model_type="llama")
    with pytest.raises(UserError, match="describes 'llama'"):
        load_vq(llama)


def test_broken_settings_name_their_file(golden_folder, tmp_path):
    folder = shutil.copytree(golden_folder, tmp_path / "folder")
    (folder / "preprocess.json").write_text('{"image_size": "64"}')
    with pytest.raises(UserError, match="preprocess.json: .*image_size a positive number"):
        load_vq(folder)
    (folder / "preprocess.json").write_text('{"image_size": 33}')
    with pytest.raises(UserError, match="image size 33 is not a multiple of 4"):
        load_vq(folder)
    (folder / "preprocess.json").unlink()
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: cannot be read as JSON"):
        load_vq(folder)
    with pytest.raises(UserError, match="config.json: diffusers' VQModel cannot be built"):
        load_vq(edited(golden_folder, tmp_path / "blocks", down_block_types=["NoSuchBlock"] * 3))


def test_settings_that_the_library_would_ignore_are_refused(golden_folder, janus_folder, tmp_path):
    with pytest.raises(UserError, match=r"config.json: use_new_norm \(True\) is not known"):
        load_vq(edited(golden_folder, tmp_path / "diffusers", use_new_norm=True))
    with pytest.raises(UserError, match=r"config.json: rotary \(2\) is not known"):
        load_vq(edited(janus_folder, tmp_path / "transformers", rotary=2))


def test_missing_and_damaged_weights_name_their_file(golden_folder, janus_folder, tmp_path):
    folder = shutil.copytree(golden_folder, tmp_path / "folder")
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="diffusion_pytorch_model.safetensors: cannot be read") as error:
        load_vq(folder)
    one_line(error)
    path.unlink()
    with pytest.raises(UserError, match="there is no diffusion_pytorch_model.safetensors"):
        load_vq(folder)
    shutil.copytree(janus_folder, tmp_path / "janus")
    (tmp_path / "janus" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there are no safetensors in it; .*JanusVQVAE.save_pretrained"):
        load_vq(tmp_path / "janus")


def test_tensors_that_do_not_fit_are_named(golden_folder, tmp_path):
    misfit = r"1 of another shape: quantize.embedding.weight \[256, 32\] instead of \[99, 32\]"
    with pytest.raises(UserError, match=misfit):
        load_vq(edited(golden_folder, tmp_path / "codebook", num_vq_embeddings=99))
    state = torch.load(GOLDEN / "vqgan.ckpt", weights_only=True)["state_dict"]
    shutil.copy(GOLDEN / "vqgan.yaml", tmp_path)
    del state["encoder.mid.attn_1.q.weight"]
    state["encoder.extra.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError) as error:
        load_vq(tmp_path)
    message = one_line(error)
    assert "1 missing: encoder.mid_block.attentions.0.to_q.weight" in message
    assert "1 unexpected: encoder.extra.weight" in message


class Callback:
    """Stands for what a training framework pickles beside the weights."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "vqgan.ckpt: torch.load cannot read it"),
        ({"state_dict": {}, "callback": Callback()}, r"holds Python objects \(.*Callback\)"),
        ({"model": {}}, "vqgan.ckpt: there is no state_dict in it"),
        (None, "there is vqgan.yaml but no vqgan.ckpt"),
    ],
)
def test_unusable_checkpoints_are_refused_in_one_line(content, message, tmp_path):
    shutil.copy(GOLDEN / "vqgan.yaml", tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "vqgan.ckpt").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=message) as error:
        load_vq(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attn_resolutions: []", "attn_resolutions: [16]", r"attn_resolutions is \[16\], but only \[\]"),
        ("double_z: false", "double_z: true", "double_z is true"),
        ("z_channels: 32", "", "key 'z_channels' is missing"),
        ("model:", "model: [", "cannot be read as a released VQGAN configuration"),
    ],
)
def test_unsupported_yaml_settings_are_refused(old, new, message, tmp_path):
    text = (GOLDEN / "vqgan.yaml").read_text()
    assert old in text
    (tmp_path / "vqgan.yaml").write_text(text.replace(old, new))
    shutil.copy(GOLDEN / "vqgan.ckpt", tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_vq(tmp_path)
    one_line(error)


def test_codebooks_beyond_16_bits_are_refused():
    model = build_model(TINY_DIFFUSERS | {"num_vq_embeddings": 65_536}, GOLDEN)
    assert ChameleonVQ(model, name="largest").codebook_size == 65_536
    model = build_model(TINY_DIFFUSERS | {"num_vq_embeddings": 65_537}, GOLDEN)
    with pytest.raises(UserError, match="codebook of 65537 entries"):
        ChameleonVQ(model, name="larger")
