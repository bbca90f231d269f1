"""Images to codes of the image tokenizer and back, as the processor does it. Imports PIL, torch and transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .pictures_uni_x import fit, images_of, pixels_of
from .sources_uni_x import open_picture
from .vq_uni_x import FAMILIES, open_picture_tokenizer

VQ_FOLDER = "vq"


class PictureCodesMixin:
    """Image tokenizer of a processor, loaded when an image is first encoded or decoded."""

    if TYPE_CHECKING:  # of the processor that this is mixed into
        settings: dict[str, Any]
        prompts: dict[str, Any]
        folder: str
        grid: tuple[int, ...]
        num_codes: int
        shapes: list[Any]
        offset: int

    _picture_tokenizer: tuple[torch.nn.Module, Any] | None = None

    def pictures(self, codes: Tensor | Sequence[Tensor]) -> list[Image.Image]:
        """Decode codes [b, rows * columns], or a list of [rows, columns] with a shape of the model each, to PIL images.

        Raises ValueError for another number of codes or another shape.
        """
        model, family = self._tokenizer_of_pictures()
        rows, columns = self.grid
        size = self.settings["codebook_size"]
        all_codes = [one for one in ([codes] if isinstance(codes, Tensor) else codes) if one.numel()]
        outside = [code for one in all_codes for code in (int(one.min()), int(one.max())) if not 0 <= code < size]
        if outside:
            raise ValueError(
                f"{outside[0]} is no code: those are 0 to {size - 1}, the ids less image_token_offset {self.offset}"
            )
        if not isinstance(codes, Tensor):
            wrong = [list(one.shape) for one in codes if tuple(one.shape) not in (self.shapes or [self.grid])]
            if wrong:
                raise ValueError(f"codes of shape {wrong[0]} are no picture: it has {self.shapes or [self.grid]}")
            with torch.no_grad():
                decoded = [family.decode(model, one.cpu()[None]).numpy() for one in codes]
            return [image for pixels in decoded for image in images_of(pixels)]
        if codes.shape[-1] != self.num_codes:
            raise ValueError(f"{codes.shape[-1]} codes are no picture: it has {rows} x {columns} = {self.num_codes}")
        with torch.no_grad():
            return images_of(family.decode(model, codes.cpu().view(-1, rows, columns)).numpy())

    def codes(self, images: Sequence[Image.Image]) -> Tensor | list[Tensor]:
        """Encode images of any size to codes [b, rows * columns] int64; for a model of several shapes a list of [rows,
        columns]."""
        model, family = self._tokenizer_of_pictures()
        side, pixels = self.settings["image_size"], self.settings.get("pixels_per_code", 0)
        sizes = [(columns * pixels, rows * pixels) for rows, columns in self.shapes] or [(side, side)]
        fitted = [fit(open_picture(image), sizes, self.prompts.get("fit") == "pad") for image in images]
        with torch.no_grad():  # one at a time, so that the codes of a picture never depend on its neighbours
            found = [family.encode(model, torch.from_numpy(pixels_of([one]))) for one in fitted]
        if not self.shapes:
            return torch.cat([one.flatten(1) for one in found])
        return [
            one.view(image.height // pixels, image.width // pixels) for one, image in zip(found, fitted, strict=True)
        ]

    def _tokenizer_of_pictures(self) -> tuple[torch.nn.Module, Any]:
        if self._picture_tokenizer is None:
            folder = Path(self.folder) / VQ_FOLDER
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("_class_name", config.get("model_type"))
            self._picture_tokenizer = open_picture_tokenizer(str(folder), kind), FAMILIES[kind]
        return self._picture_tokenizer
