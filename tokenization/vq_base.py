"""Base class of image tokenizers: images to VQ codes and back.

The families (`vq_chameleon.py`, `vq_transformers.py`) say how their model encodes and decodes a tensor; this file does
what is the same for all: pictures to pixels, checks of shapes and ranges, exact codes, and the fingerprint that ties
code shards to the weights that made them. Pixels are float32 in -1..1 (`uint8 / 127.5 - 1`) for every family.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from tokenization.batches import Settled

LARGEST_CODEBOOK = 1 << 16
"""Codes are stored as uint16, in memory and in shards."""


class VQ(ABC):
    """An image tokenizer: an encoder, a codebook and a decoder, in float32 and in evaluation mode.

    A picture of H x W pixels becomes a grid of H/downsample x W/downsample codes, each in 0..codebook_size-1.

    Codes are computed in float32 always, TensorFloat32 off. Even so, kernels round differently for other batch sizes,
    thread counts and devices, and a latent within a rounding error of the border between two codes may go either way.
    On a CPU each picture of a batch therefore has the codes that it has alone, by one thread: small ones are encoded several at
    a time, and again alone where that could matter (`batches.py`), others alone, several at a time (`one_thread.py`). Codes depend
    neither on neighbours nor on the number of threads. Nor do the pixels of codes that are decoded, always one by one: of 12,288
    numbers that are rounded to 8 bits some are always near a border. On a GPU batches go whole.

    The model that a subclass is given is taken over: cast, frozen and moved. Pass a copy of one that is in training.
    """

    family: str
    """Which architecture the fingerprint speaks of; each subclass names its own."""
    in_batches = False
    """Whether `_latents`, `_codes` and `_settle` are there, so that small pictures can be encoded several at a time on a CPU."""

    def __init__(
        self, model: torch.nn.Module, *, name: str, codebook_size: int, downsample: int, image_size: int, device: str
    ):
        if codebook_size > LARGEST_CODEBOOK:
            raise UserError(
                f"VQ model {name!r} has a codebook of {codebook_size} entries, but code shards hold 16-bit codes; "
                f"use a model of at most {LARGEST_CODEBOOK} entries"
            )
        if image_size <= 0 or image_size % downsample:
            raise UserError(
                f"VQ model {name!r}: image size {image_size} is not a multiple of {downsample}, the pixels per code; "
                "set another image_size in its preprocess.json"
            )
        from tokenization.batches import BatchCounts

        self.name = name
        self.codebook_size = codebook_size
        self.downsample = downsample
        self.image_size = image_size
        self.model: Any = model.float().eval().requires_grad_(False)
        if str(device) != "cpu":  # on its device already: a diffusers model's `to` imports torch's compiler in any case
            self.model.to(device)
        self.fingerprint = self._fingerprint()
        self.bounds: dict[tuple[int, int], float] = {}  # by height and width: rounding bound of a latent
        self.batches = BatchCounts()

    def encode(self, images: list[Image.Image]) -> np.ndarray:
        """Codes uint16 [b, h, w] of images of one size, both sides multiples of `downsample`. Raises UserError
        otherwise."""
        sizes = sorted({image.size for image in images})
        if len(sizes) != 1:
            raise UserError(f"encode takes pictures of one size, got sizes {sizes}; preprocess them first")
        return self.encode_pixels(pixels_of(images))

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Codes uint16 [b, H/downsample, W/downsample] of pixels float [b, 3, H, W] in -1..1.

        UserError on another shape, or sides that are not multiples of `downsample`.
        """
        import numpy as np
        import torch

        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
            raise UserError(f"pixels must have shape [pictures, 3, height, width], got {list(pixels.shape)}")
        height, width = pixels.shape[2:]
        if height % self.downsample or width % self.downsample:
            raise UserError(
                f"a picture of {width} x {height} pixels: both sides must be multiples of {self.downsample} for "
                f"VQ model {self.name!r}; preprocess it first"
            )
        self._check_grid(height // self.downsample, width // self.downsample)
        pixels = pixels.to(self.device, torch.float32, memory_format=torch.contiguous_format)
        if self.device.type == "cpu" and self.in_batches:
            from tokenization.batches import codes_in_batches

            with torch.no_grad(), full_float32():
                return codes_in_batches(self, pixels).numpy().astype(np.uint16)
        return torch.cat(self._each(self._encode, pixels)).cpu().numpy().astype(np.uint16)

    def decode(self, codes: np.ndarray | torch.Tensor) -> list[Image.Image]:
        """RGB images of codes [b, h, w]. Raises UserError for another shape, or a code outside the codebook."""
        return images_of(self.decode_pixels(codes))

    def decode_pixels(self, codes: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Pixels float32 [b, 3, h * downsample, w * downsample] of codes [b, h, w], errors as in `decode`.

        Black is -1 and white is 1, but a decoder may shoot past either: `decode` clamps, this does not.
        """
        import torch

        return torch.cat(self._each(self._decode, self._checked_codes(codes)))

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load_vq` reads: config.json, safetensors weights and preprocess.json."""
        from pretrain.system.light_imports import SHARDED_TENSORS, deferred

        folder = Path(folder)
        with deferred(SHARDED_TENSORS):  # huggingface_hub asks of each tensor whether it is one
            self.model.save_pretrained(folder, safe_serialization=True)
        preprocess = {"image_size": self.image_size, "name": self.name}
        (folder / "preprocess.json").write_text(json.dumps(preprocess, indent=2) + "\n", encoding="utf-8")

    @abstractmethod
    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Codes int64 [b, h, w] of pixels float32 [b, 3, H, W]."""

    @abstractmethod
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels float32 [b, 3, H, W] of codes int64 [b, h, w]."""

    @abstractmethod
    def _architecture(self) -> dict[str, Any]:
        """Settings that change the computation but not the names and shapes of the weights."""

    def check_grids(self, grids: Iterable[tuple[int, int]]) -> None:
        """Raises UserError if the model does not support one of these grids of codes."""
        for rows, columns in grids:
            self._check_grid(rows, columns)

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents float32 [b, h, w, c] of pixels float32 [b, 3, H, W]."""
        raise NotImplementedError

    def _codes(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [b, h, w] of these latents, by the same operations as `_encode`."""
        raise NotImplementedError

    def _settle(self, latents: torch.Tensor) -> Settled:
        """Codes of latents, and each latent's margin before its code would change."""
        raise NotImplementedError

    def _check_grid(self, rows: int, columns: int) -> None:  # noqa: B027
        """Raises UserError if the model does not support a grid of this many codes; most support any."""

    def _each(self, work: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> list[torch.Tensor]:
        """`work` of a batch [b, ...]: one image at a time on a CPU, the whole batch on a GPU; in full float32, without
        gradients."""
        import torch

        from tokenization.one_thread import one_thread_each

        with torch.no_grad(), full_float32():
            return one_thread_each(work, batch.split(1)) if batch.device.type == "cpu" else [work(batch)]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def _checked_codes(self, codes: np.ndarray | torch.Tensor) -> torch.Tensor:
        import numpy as np
        import torch

        dtype, shape = codes.dtype, list(codes.shape)
        if isinstance(codes, np.ndarray) and np.issubdtype(codes.dtype, np.integer):
            codes = torch.from_numpy(codes.astype(np.int64))
        if not isinstance(codes, torch.Tensor) or codes.is_floating_point() or codes.ndim != 3 or not codes.numel():
            raise UserError(f"codes must be integers of shape [pictures, rows, columns], got {dtype} {shape}")
        codes = codes.to(self.device, torch.int64)
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise UserError(
                f"code {low if low < 0 else high} is outside the codebook of VQ model {self.name!r}: "
                f"its codes go from 0 to {self.codebook_size - 1}"
            )
        self._check_grid(*codes.shape[1:])
        return codes

    def _fingerprint(self) -> str:
        """SHA-256 in hex over the family, its settings, and every tensor's name, shape and float32 bytes.

        It is the same wherever the files lie and whichever format held them. Weights that were rounded to half
        precision for storage are other weights, and have another fingerprint.
        """
        digest = hashlib.sha256()
        settings = {"family": self.family, "codebook_size": self.codebook_size, "downsample": self.downsample}
        digest.update(json.dumps(settings | self._architecture(), sort_keys=True).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"\n{key} {list(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@contextmanager
def full_float32() -> Iterator[None]:
    """Context without TensorFloat32 in convolutions and matrix products; the process's setting is restored after."""
    import torch

    convolution, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.set_float32_matmul_precision(matmul)


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """Images of one size as float32 [b, 3, H, W] in -1..1."""
    import torch

    from model.hf import pictures_uni_x

    return torch.from_numpy(pictures_uni_x.pixels_of(images))


def images_of(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels float [b, 3, H, W], clamped to -1..1, as RGB images."""
    from model.hf import pictures_uni_x

    return pictures_uni_x.images_of(pixels.cpu().numpy())
