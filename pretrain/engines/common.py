"""Shared by both engines: routing of a row, loss sums, Adam's hyperparameters, check of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.routing import RowRouting, route
from model.vocabulary import Vocabulary
from model.weight_shapes import EMBEDDING
from pretrain.config import OptimSection
from pretrain.row_tensors import Row
from pretrain.sharded_files import stored_tensors
from pretrain.system.errors import UserError
from pretrain.tensor_boxes import TensorBox

REMEDY = "resume with the configuration that made it, or choose another run.folder"


def routing_of(
    row: Row,
    model: ModelConfig,
    dtype: torch.dtype,
    seed: int,
    dropping: bool,
    sequence_parallel: bool,
    with_angles: bool = False,
) -> RowRouting:
    """Routing of a row on its device. `dropping`: dropout is active; `with_angles`: for kernels that rotate by
    angles."""
    return route(
        row.positions,
        row.to_document,
        row.lengths,
        model.head_dim,
        model.rope,
        dtype,
        dropout_key=f"{seed}:{row.index}" if dropping else None,
        sequence_parallel=sequence_parallel,
        ends=row.ends,
        with_angles=with_angles,
    )


def loss_sums(losses: Tensor, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Losses [T] and labels [T] of target tokens -> sums [text loss, image loss, text tokens, image tokens],
    unweighted."""
    losses = losses.detach()
    image = vocabulary.is_code(labels)
    by_image, tokens_image = torch.where(image, losses, 0.0).sum(), image.sum()
    return torch.stack([losses.sum() - by_image, by_image, len(labels) - tokens_image, tokens_image])


def decays(name: str, dimensions: int, optim: OptimSection) -> bool:
    """Whether a weight of this training name has weight decay: not biases and norms, and embeddings by choice.

    Where embedding and LM head are tied, they are one weight, and the embedding's choice counts.
    """
    if name == EMBEDDING and not optim.decay_embeddings:
        return False
    return dimensions > 1 and not name.endswith(".bias")


def set_hyperparameters(groups: Iterable[dict], optim: OptimSection, lr: float) -> None:
    """Set the configuration's hyperparameters, whatever a checkpoint has; what `decays` says no to has no weight decay
    (`wd_mult` 0)."""
    for group in groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = (optim.beta1, optim.beta2), optim.eps


def check_stored(folder: Path, boxes: Sequence[TensorBox], remedy: str = REMEDY) -> None:
    """Raises UserError when the tensors in `folder` are not those of the boxes: another model, or another precision."""
    stored = stored_tensors(folder)
    wanted = {box.key: (box.shape, box.tensor.dtype) for box in boxes}
    different = sorted(name for name, described in wanted.items() if stored.get(name) != described)
    if different and all(name.startswith("optimizer.") and name not in stored for name in different):
        raise UserError(
            f"{folder}: has no optimizer state of {len(different)} tensors that learn here ({different[0]} first), since they "
            "were frozen: set optim.freeze as it was, or start a new run from these weights with run.init_from"
        )
    if different:
        there, here = (_described(found.get(different[0])) for found in (stored, wanted))
        raise UserError(
            f"{folder}: is a checkpoint of another model or precision ({len(different)} tensors differ, {different[0]} "
            f"first: {there} there, {here} here): {remedy}"
        )


def _described(tensor: tuple | None) -> str:
    return f"{list(tensor[0])} {str(tensor[1])[6:]}" if tensor else "absent"
