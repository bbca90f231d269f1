"""Blocks of target tokens for gradient conflict: equally many targets each, text tokens only or image tokens only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.vocabulary import Vocabulary
from pretrain.row_tensors import Row
from pretrain.system.errors import UserError

TEXTS = ("any", "plain", "captions")


@dataclass(frozen=True)
class BlockSizes:
    """Number and size of blocks. Half of `blocks` make a half of the mixed targets, so `blocks` is even."""

    blocks: int  # of each modality
    targets: int  # target tokens of a block
    text: str = "any"  # which text: any; plain (documents without a picture); captions (documents with one)

    def check(self) -> None:
        """Raises UserError for sizes that cannot be used."""
        if self.blocks < 4 or self.blocks % 2 or self.targets < 1:
            raise UserError(
                f"{self.blocks} blocks of {self.targets} targets: take an even number of at least 4, of 1 or more"
            )


@dataclass
class RowShare:
    """A row, its counted targets with text first, and the blocks that they belong to."""

    row: Row
    num_text: int  # of row.targets
    text_block: int
    image_block: int


def split_targets(row: Row, vocabulary: Vocabulary, text: str = "any") -> tuple[Tensor, Tensor]:
    """Target tokens of a row -> (those whose label is text, those whose label is an image token).

    The three marks (start and end of a picture, end of text) are neither: after a picture they are certain, and they
    would make up most of the text of captioned pictures.
    """
    labels = row.labels[row.targets]
    marks = (vocabulary.vision_start_id, vocabulary.vision_end_id, vocabulary.eos_id)
    is_image = vocabulary.is_code(labels)
    is_text = ~is_image & ~torch.isin(labels, torch.tensor(marks))
    if text != "any":
        has_picture = torch.tensor(row.lengths["vision"])[row.document_of_targets()] > 0
        is_text &= has_picture if text == "captions" else ~has_picture
    return row.targets[is_text], row.targets[is_image]


def share_out(rows: Iterable[Row], vocabulary: Vocabulary, sizes: BlockSizes) -> list[RowShare]:
    """Assign rows' target tokens to blocks until all blocks are full.

    A row counts for at most one block of each modality, so that no two blocks share a document; what a full block does
    not need is left out. Raises UserError when the rows do not fill the blocks.
    """
    sizes.check()
    shares = []
    block, filled = [0, 0], [0, 0]  # of text, of pictures
    for row in rows:
        parts = []
        for modality, targets in enumerate(split_targets(row, vocabulary, sizes.text)):
            room = sizes.targets - filled[modality] if block[modality] < sizes.blocks else 0
            parts.append(targets[:room])
            filled[modality] += len(parts[-1])
        if len(parts[0]) + len(parts[1]):
            shares.append(RowShare(replace(row, targets=torch.cat(parts)), len(parts[0]), *block))
        for modality in (0, 1):
            if filled[modality] == sizes.targets:
                block[modality], filled[modality] = block[modality] + 1, 0
        if min(block) == sizes.blocks:
            return shares
    found = [full * sizes.targets + rest for full, rest in zip(block, filled)]
    raise UserError(
        f"the data have {found[0]} usable text targets ({sizes.text}) and {found[1]} picture codes, "
        f"{sizes.blocks * sizes.targets} of each are wanted: take fewer or smaller blocks, or more data"
    )
