"""Pictures encoded several at a time have the codes that each has alone: the bound on rounding, and what is encoded again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.tokenization.vq_folders import GOLDEN, TINY_DIFFUSERS, tiny_janus
from tokenization import batches
from tokenization.vq import load_vq
from tokenization.vq_base import pixels_of
from tokenization.vq_chameleon import ChameleonVQ, build_model

pytestmark = pytest.mark.slow

SIZES = (32, 64, 96)


@pytest.fixture(scope="module")
def shipped() -> ChameleonVQ:
    return load_vq("openmoji-64")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def photographs(count: int, size: int, seed: int = 0) -> list[Image.Image]:
    """Pictures with soft shapes, edges, noise and flat areas, as photographs and scans have them."""
    generator, pictures = np.random.default_rng(seed), []
    for _ in range(count):
        cells = int(generator.integers(1, 12))
        colours = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((size, size), Image.Resampling(int(generator.integers(0, 4))))
        if generator.random() < 0.5:
            noise = generator.normal(0, generator.choice([1, 20]), (size, size, 3))
            picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
        if generator.random() < 0.3:
            picture = picture.filter(ImageFilter.GaussianBlur(2))
        if generator.random() < 0.3:
            picture.paste((255, 255, 255), (0, 0, size, int(generator.integers(1, size))))
        pictures.append(picture)
    return pictures


def each_alone(vq, pixels: torch.Tensor) -> np.ndarray:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        codes = torch.cat([vq._encode(picture) for picture in pixels.split(1)]).numpy()
    torch.set_num_threads(before)
    return codes


@pytest.mark.parametrize("size", SIZES)
def test_codes_are_those_of_each_picture_alone_for_any_threads_batch_and_order(shipped, threads, size):
    pixels = pixels_of(photographs(24, size))
    alone = each_alone(shipped, pixels)
    for count in (1, 2, 4):
        threads(count)
        assert np.array_equal(shipped.encode_pixels(pixels), alone)
        assert np.array_equal(shipped.encode_pixels(pixels.flip(0))[::-1], alone)
        assert np.array_equal(np.concatenate([shipped.encode_pixels(part) for part in pixels.split(7)]), alone)
        assert torch.get_num_threads() == count
    assert shipped.batches.pictures >= 24


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from(SIZES), at_once=st.integers(2, 16))
def test_rounding_moves_latents_by_less_than_half_the_bound(shipped, seed, size, at_once):
    pixels = pixels_of(photographs(at_once, size, seed))
    torch.set_num_threads(1)
    with torch.no_grad():
        alone = torch.cat([shipped._latents(picture) for picture in pixels.split(1)])
        assert batches.furthest(shipped._latents(pixels), alone) < batches.bound_for(shipped, pixels) / 2


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 64),
    entries=st.integers(1, 40),
    scale=st.floats(0.01, 100),
    closeness=st.sampled_from([1.0, 1e-3, 1e-6]),
)
def test_no_code_changes_while_latents_move_by_less_than_their_slack(seed, width, entries, scale, closeness):
    """Judged in float64, with moves at random and straight to each other entry."""
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(entries, width, generator=generator) * closeness + torch.randn(width, generator=generator)
    latents = codebook[torch.randint(entries, (1, 3, 5), generator=generator)] + closeness * scale * torch.randn(
        1, 3, 5, width, generator=generator
    )
    unit = torch.nn.functional.normalize(codebook, dim=-1)
    for settled, book in (
        (batches.nearest_two(latents, codebook), codebook),
        (batches.largest_two(latents, unit), unit),
    ):
        certain = settled.slack > 0
        towards = book[None, None, None] - latents[:, :, :, None]  # [1, 3, 5, entries, width]
        moves = torch.cat([towards, torch.randn(1, 3, 5, 4, width, generator=generator)], 3).double()
        moves = (
            moves
            / moves.norm(dim=-1, keepdim=True).clamp_min(1e-300)
            * settled.slack.clamp(max=1e30)[..., None, None].double()
        )
        moved = latents[:, :, :, None].double() + moves
        if book is codebook:
            found = torch.cdist(
                moved.reshape(-1, width), book.double(), compute_mode="donot_use_mm_for_euclid_dist"
            ).argmin(1)
        else:
            found = (moved.reshape(-1, width) @ book.double().T).argmax(1)
        same = found.view(1, 3, 5, -1) == settled.codes[..., None]
        assert same[certain].all()


def twins(width: int = 32) -> ChameleonVQ:
    """Every code of this codebook has a twin a rounding error away, so that no picture is certain."""
    model = build_model(TINY_DIFFUSERS | {"block_out_channels": [width, 64], "latent_channels": 32}, GOLDEN)
    codebook = model.quantize.embedding.weight.data
    codebook[16:] = codebook[:16] * (1 + 2e-7) + 1e-8
    return ChameleonVQ(model, name="twins")


def test_what_is_not_certain_is_encoded_again_alone_and_counted():
    vq, pixels = twins(), pixels_of(photographs(9, 32))
    assert np.array_equal(vq.encode_pixels(pixels), each_alone(vq, pixels))
    assert (vq.batches.pictures, vq.batches.again) == (9, 9)
    assert 0 < vq.batches.moved < vq.batches.bound


def test_a_bound_that_was_too_small_is_widened_by_what_is_encoded_again(shipped):
    """Rounding that is worse on real pictures than on the made ones shows itself."""
    vq, pixels = load_vq("openmoji-64"), pixels_of(photographs(32, 64))
    alone = torch.cat([vq._latents(picture) for picture in pixels.split(1)])
    # the latents of one picture are entries of the codebook's border: its code is never certain
    codebook = vq.model.quantize.embedding.weight.data
    codebook[0], codebook[1] = alone[0, 0, 0] + 0.01, alone[0, 0, 0] - 0.01
    vq.bounds[(64, 64)] = 1e-9
    assert np.array_equal(vq.encode_pixels(pixels), each_alone(vq, pixels))
    assert vq.batches.again >= 1 and vq.bounds[(64, 64)] >= batches.MARGIN * vq.batches.moved > 1e-9


def test_latents_that_are_no_numbers_are_encoded_alone():
    vq, pixels = twins(), pixels_of(photographs(3, 32))
    pixels[1, 0, 3, 3] = torch.nan
    assert np.array_equal(vq.encode_pixels(pixels), each_alone(vq, pixels))


def test_janus_is_encoded_in_batches_too(tmp_path):
    tiny_janus().save_pretrained(tmp_path)
    vq, pixels = load_vq(tmp_path), pixels_of(photographs(20, 16))
    assert np.array_equal(vq.encode_pixels(pixels), each_alone(vq, pixels))
    assert vq.batches.pictures == 20


def test_large_pictures_are_encoded_alone(shipped):
    before = shipped.batches.pictures
    shipped.encode_pixels(pixels_of(photographs(2, 256)))
    assert shipped.batches.pictures == before
    assert [batches.at_once(size, size, 32, 2) for size in (64, 128, 256, 512)] == [16, 4, 1, 1]
