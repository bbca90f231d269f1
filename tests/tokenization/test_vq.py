"""Image tokenizers: Meta's reference codes, the libraries' own calls, exact batches, and fingerprints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from tests.tokenization.vq_folders import GOLDEN, TINY_DIFFUSERS, edited, tiny_emu3, tiny_janus
from tokenization.vq import load_vq
from tokenization.vq_base import full_float32, images_of, pixels_of
from tokenization.vq_chameleon import ChameleonVQ, build_model

ROOT = Path(__file__).resolve().parents[2]
SAVED_BY_5 = ROOT / "tests/data/saved_by_transformers_5"


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def golden() -> ChameleonVQ:
    return load_vq(GOLDEN)


@pytest.fixture(scope="module")
def golden_folder(golden, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq") / "saved"
    golden.save(folder)
    return folder


@pytest.fixture(scope="module")
def emu3():
    return tiny_emu3()


@pytest.fixture(scope="module")
def janus():
    return tiny_janus()


def drawings(count: int, size: int) -> list[Image.Image]:
    """Pictures with flat areas, edges and a gradient, each different."""
    pictures = []
    for index in range(count):
        picture = Image.linear_gradient("L").resize((size, size)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        draw.ellipse((index, 2, size - 4, size - 2 - index), fill=(40 * index % 256, 200, 90), outline="black")
        draw.rectangle((0, 0, size // 3, index + 1), fill=(255, 30 * index % 256, 0))
        pictures.append(picture)
    return pictures


def test_released_chameleon_files_give_the_reference_codes_and_pixels(golden, reference):
    codes = golden.encode_pixels(reference["pixels"])
    assert codes.dtype == np.uint16 and codes.shape == (3, 8, 8)
    assert np.array_equal(codes.reshape(3, 64), reference["codes"].numpy())
    assert (golden.decode_pixels(codes) - reference["decoded"]).abs().max() <= 1e-4
    assert (golden.codebook_size, golden.downsample, golden.image_size) == (256, 4, 32)


def test_the_saved_diffusers_folder_is_the_same_model(golden, golden_folder, reference):
    saved = load_vq(golden_folder)
    assert np.array_equal(saved.encode_pixels(reference["pixels"]), golden.encode_pixels(reference["pixels"]))
    attributes = ("name", "fingerprint", "codebook_size", "downsample", "image_size")
    assert [getattr(saved, key) for key in attributes] == [getattr(golden, key) for key in attributes]


def test_diffusers_itself_opens_the_saved_folder(golden, golden_folder, reference):
    from diffusers import VQModel

    model = VQModel.from_pretrained(golden_folder).eval()
    with torch.no_grad():
        reconstruction = model(reference["pixels"]).sample
    codes = golden.encode_pixels(reference["pixels"])
    assert torch.allclose(golden.decode_pixels(codes), reconstruction, atol=1e-4)


def test_attention_under_the_names_of_old_diffusers_is_read_as_diffusers_reads_it(golden_folder, tmp_path):
    from diffusers import VQModel

    from tokenization.vq_chameleon import DIFFUSERS_WEIGHTS, OLD_ATTENTION

    old = shutil.copytree(golden_folder, tmp_path / "old")
    tensors = load_file(old / DIFFUSERS_WEIGHTS)
    for before, now in OLD_ATTENTION.items():
        tensors = {key.replace(now, before): value for key, value in tensors.items()}
    assert sum(".query." in key for key in tensors) == 4
    save_file(tensors, old / DIFFUSERS_WEIGHTS)
    theirs, ours = VQModel.from_pretrained(old).state_dict(), load_vq(old).model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_discriminator_tensors_of_a_checkpoint_are_left_out(golden, tmp_path):
    state = torch.load(GOLDEN / "vqgan.ckpt", weights_only=True)["state_dict"]
    shutil.copy(GOLDEN / "vqgan.yaml", tmp_path)
    torch.save({"state_dict": state | {"loss.discriminator.main.0.weight": torch.zeros(2)}}, tmp_path / "vqgan.ckpt")
    assert load_vq(tmp_path).fingerprint == golden.fingerprint


def test_five_levels_of_the_released_layout_all_find_their_place():
    from tokenization.vq_chameleon import diffusers_state

    levels = 5
    released = {f"decoder.up.{level}.block.2.conv1.bias": torch.tensor(level) for level in range(levels)}
    released |= {f"encoder.down.{level}.downsample.conv.bias": torch.tensor(level) for level in range(levels - 1)}
    renamed = diffusers_state(released, levels)
    for level in range(levels):
        assert renamed[f"decoder.up_blocks.{levels - 1 - level}.resnets.2.conv1.bias"] == level
    assert renamed["encoder.down_blocks.3.downsamplers.0.conv.bias"] == 3
    assert len(renamed) == len(released)


def test_emu3_gives_the_codes_and_pixels_of_transformers(emu3, tmp_path):
    emu3.save_pretrained(tmp_path)
    pixels = pixels_of(drawings(3, 16))
    with torch.no_grad():
        codes = torch.cat([torch.stack(emu3.encode(picture[None], [(16, 16)])) for picture in pixels])
        decoded = torch.cat([emu3.decode(each[None]) for each in codes])
    loaded = load_vq(tmp_path)
    assert len(codes.unique()) > 4, "a model that gives one code to everything would compare nothing"
    assert np.array_equal(loaded.encode_pixels(pixels), codes.numpy())
    assert torch.allclose(loaded.decode_pixels(codes), decoded, atol=1e-6)
    assert (loaded.codebook_size, loaded.downsample, loaded.image_size) == (64, 2, 512)


def test_janus_decodes_as_transformers_and_encodes_on_the_unit_sphere(janus, tmp_path):
    janus.save_pretrained(tmp_path)
    pixels = pixels_of(drawings(3, 16))
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        latents = torch.cat([janus.quant_conv(janus.encoder(picture[None])) for picture in pixels])
        latents = unit(latents.permute(0, 2, 3, 1), dim=-1)
        codes = torch.cdist(latents.flatten(1, 2), unit(janus.quantize.embedding.weight, dim=-1)).argmin(-1)
        decoded = torch.cat([janus.decode(each[None]) for each in codes])
    loaded = load_vq(tmp_path)
    assert len(codes.unique()) > 4
    assert np.array_equal(loaded.encode_pixels(pixels), codes.view(3, 8, 8).numpy())
    assert torch.allclose(loaded.decode_pixels(codes.view(3, 8, 8)), decoded, atol=1e-6)
    assert (loaded.codebook_size, loaded.downsample, loaded.image_size) == (64, 2, 16)


def test_janus_encodes_as_transformers_where_the_codebook_lies_on_the_unit_sphere(janus, tmp_path):
    janus.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    codebook = torch.nn.functional.normalize(weights["quantize.embedding.weight"], dim=-1)
    save_file(weights | {"quantize.embedding.weight": codebook}, tmp_path / "model.safetensors")
    loaded = load_vq(tmp_path)
    pixels = pixels_of(drawings(1, 16))
    with torch.no_grad():
        _, _, codes = loaded.model.encode(pixels)
    assert np.array_equal(loaded.encode_pixels(pixels), codes.view(1, 8, 8).numpy())


@pytest.mark.parametrize("family", ["emu3", "janus"])
@pytest.mark.parametrize("prefix", ["model.vqmodel.", "vqmodel."])
def test_the_tokenizer_is_found_inside_a_whole_model(family, prefix, request, tmp_path):
    model = request.getfixturevalue(family)
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    model.save_pretrained(alone)
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps({"model_type": family, "vq_config": model.config.to_dict()}))
    tensors = {prefix + key: value for key, value in load_file(alone / "model.safetensors").items()}
    first, *rest = tensors
    save_file({first: tensors[first], "lm_head.weight": torch.zeros(2, 2)}, whole / "model-00001-of-00002.safetensors")
    save_file({key: tensors[key] for key in rest}, whole / "model-00002-of-00002.safetensors")
    places = dict.fromkeys((first, "lm_head.weight"), "model-00001-of-00002.safetensors")
    places |= dict.fromkeys(rest, "model-00002-of-00002.safetensors")
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file({key: value + 1 for key, value in tensors.items()}, whole / "old.safetensors")  # which nothing names
    assert load_vq(whole).fingerprint == load_vq(alone).fingerprint


@pytest.mark.parametrize("family", ["emu3", "janus"])
def test_a_folder_that_transformers_5_saved_is_the_same_tokenizer(family, request, tmp_path):
    """5.24.0 writes fewer keys than 4.57.6, and none that this does not have; tensors have the same names."""
    keys = {
        "emu3": "attention_dropout attn_resolutions base_channels channel_multiplier codebook_size double_latent embed_dim "
        "hidden_size in_channels latent_channels model_type num_attention_heads num_res_blocks out_channels "
        "temporal_downsample_factor",
        "janus": "base_channels channel_multiplier double_latent dropout embed_dim hidden_act image_token_embed_dim in_channels "
        "initializer_range latent_channels model_type num_embeddings num_hidden_layers num_patches num_res_blocks out_channels "
        "projection_dim",
    }[family].split()
    model = request.getfixturevalue(family)
    for folder in ("old", "new"):
        model.save_pretrained(tmp_path / folder)
    values = json.loads((tmp_path / "new/config.json").read_text())
    values = {key: values[key] for key in keys} | {"dtype": "float32", "transformers_version": "5.24.0"}
    (tmp_path / "new/config.json").write_text(json.dumps(values))
    assert load_vq(tmp_path / "new").fingerprint == load_vq(tmp_path / "old").fingerprint


@pytest.mark.parametrize("family, image_size", [("emu3", 512), ("janus", 4)])
def test_a_whole_model_that_transformers_5_saved_gives_its_tokenizer(family, image_size, tmp_path):
    """config.json as 5.24.0 wrote it for a tiny Emu3ForConditionalGeneration and JanusForConditionalGeneration, and the
    names and shapes of their tensors, with other values."""
    saved = json.loads((SAVED_BY_5 / f"{family}.json").read_text())
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in saved["tensors"].items()}
    tensors |= {name: torch.tensor(0) for name in tensors if name.endswith("num_batches_tracked")}
    (tmp_path / "config.json").write_text(json.dumps(saved["config"]))
    save_file(tensors, tmp_path / "model.safetensors")
    whole = load_vq(tmp_path)
    held = {name.partition("vqmodel.")[2]: value for name, value in tensors.items() if "vqmodel." in name}
    assert held and whole.image_size == image_size
    assert whole.model.state_dict().keys() == held.keys()
    assert all(torch.equal(value, held[name]) for name, value in whole.model.state_dict().items())
    settings = whole.model.config.to_dict()
    for key, value in saved["config"]["vq_config"].items():
        assert settings.get(key, value) == value or key == "dtype", key


@pytest.mark.parametrize("family", ["emu3", "janus"])
def test_a_saved_transformers_tokenizer_is_the_same_model(family, request, tmp_path):
    request.getfixturevalue(family).save_pretrained(tmp_path / "first")
    first = load_vq(tmp_path / "first")
    first.save(tmp_path / "second")
    second = load_vq(tmp_path / "second")
    assert (second.fingerprint, second.name, second.image_size) == (first.fingerprint, "first", first.image_size)


def test_codes_of_a_picture_do_not_depend_on_its_batch(golden):
    """Every code of this codebook has a twin a rounding error away, so that a kernel that rounds otherwise shows."""
    model = build_model(TINY_DIFFUSERS | {"block_out_channels": [32, 64], "latent_channels": 32}, GOLDEN)
    codebook = model.quantize.embedding.weight.data
    codebook[16:] = codebook[:16] * (1 + 2e-7) + 1e-8
    for tokenizer in (golden, ChameleonVQ(model, name="twins")):
        images = drawings(7, 32)
        together = tokenizer.encode(images)
        assert np.array_equal(together, np.concatenate([tokenizer.encode([image]) for image in images]))
        assert np.array_equal(together[2:5], tokenizer.encode(images[2:5]))


def test_codes_and_pixels_do_not_depend_on_threads_batches_or_order():
    """Kernels split their sums over threads, and round accordingly: latents of a wide model show it at once."""
    model = build_model(TINY_DIFFUSERS | {"block_out_channels": [64, 64], "latent_channels": 64}, GOLDEN)
    codebook = model.quantize.embedding.weight.data
    codebook[16:] = codebook[:16] * (1 + 2e-7) + 1e-8
    tokenizer, images, before = ChameleonVQ(model, name="twins"), drawings(5, 64), torch.get_num_threads()
    codes = tokenizer.encode(images)
    pixels = tokenizer.decode_pixels(codes)
    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            assert np.array_equal(tokenizer.encode(images), codes)
            assert np.array_equal(tokenizer.encode(images[3:4])[0], codes[3])
            assert np.array_equal(tokenizer.encode(images[::-1])[::-1], codes)
            assert torch.equal(tokenizer.decode_pixels(codes), pixels)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@settings(max_examples=10, deadline=None)
@given(pictures=st.integers(1, 3), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_any_grid_decodes_and_encodes_to_the_same_shape(golden, pictures, rows, columns):
    codes = np.arange(pictures * rows * columns, dtype=np.uint16).reshape(pictures, rows, columns)
    images = golden.decode(codes)
    assert [image.size for image in images] == [(columns * 4, rows * 4)] * pictures
    assert all(image.mode == "RGB" for image in images)
    assert golden.encode(images).shape == codes.shape
    from_tensor = golden.decode(torch.from_numpy(codes.astype(np.int32)))
    assert all(np.array_equal(a, b) for a, b in zip(images, from_tensor, strict=True))


def test_pixels_go_from_minus_one_to_one_and_back_exactly():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    pixels = pixels_of([image])
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert np.array_equal(np.asarray(images_of(pixels)[0]), np.asarray(image))
    assert images_of(torch.full((1, 3, 1, 1), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_pixels_lie_in_memory_as_group_norm_sums_them_well():
    """In channels-last order torch 2.13's GroupNorm is 100 times further from float64 on a CPU."""
    assert pixels_of([Image.new("RGB", (8, 8))] * 2).is_contiguous()


def test_fingerprint_tells_weights_settings_and_families_apart(golden, golden_folder, tmp_path):
    regrouped = edited(golden_folder, tmp_path / "groups", norm_num_groups=16)
    changed = shutil.copytree(golden_folder, tmp_path / "weights")
    weights = load_file(changed / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + 1e-3
    save_file(weights, changed / "diffusion_pytorch_model.safetensors")
    found = {golden.fingerprint, load_vq(regrouped).fingerprint, load_vq(changed).fingerprint}
    assert len(found) == 3 and all(len(fingerprint) == 64 for fingerprint in found)


def test_fingerprint_ignores_storage_that_loses_nothing(golden_folder, tmp_path):
    fingerprints = []
    for dtype in (torch.float16, torch.float32):
        folder = shutil.copytree(golden_folder, tmp_path / str(dtype))
        path = folder / "diffusion_pytorch_model.safetensors"
        save_file({key: value.half().to(dtype) for key, value in load_file(path).items()}, path)
        fingerprints.append(load_vq(folder).fingerprint)
    assert fingerprints[0] == fingerprints[1] != load_vq(golden_folder).fingerprint


def test_preprocess_json_sets_name_and_size(golden_folder, tmp_path):
    folder = shutil.copytree(golden_folder, tmp_path / "folder")
    (folder / "preprocess.json").write_text('{"image_size": 64}')
    assert (load_vq(folder).name, load_vq(folder).image_size) == ("folder", 64)
    (folder / "preprocess.json").unlink()
    assert load_vq(folder).image_size == 32


def test_encoding_turns_tensorfloat32_off_and_back_on():
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_importing_the_module_loads_no_heavy_library():
    check = (
        "import sys, tokenization.vq, tokenization.vq_chameleon, tokenization.vq_transformers; "
        "sys.exit(', '.join({'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True).stderr.strip() == ""
