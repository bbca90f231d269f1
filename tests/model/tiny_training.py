"""Tiny training models, and rows made of the documents of `tiny_hf`."""

from __future__ import annotations

import numpy
import torch

from model.config import ModelConfig
from model.layer_specs import transformer_config
from model.routing import RowRouting, route
from model.uni_x import UniXTrainingModel
from model.vocabulary import IGNORED
from pretrain import runtime
from pretrain.row_tensors import Row, assemble
from pretrain.rows import RowSize
from tests.model.tiny_hf import randomise, tiny_config


def training_config(**changes) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config(**changes).to_dict())


def training_model(config: ModelConfig, seed: int = 0) -> UniXTrainingModel:
    runtime.start_distributed(seed)
    return randomise(UniXTrainingModel(config, transformer_config(config)), seed)


def row_of(documents: list[list[int]], config: ModelConfig, tokens: int, multiple: int = 1) -> Row:
    """Documents as ids -> a row in which every token but a document's last predicts the next."""
    pairs = []
    for ids in documents:
        ids = numpy.array(ids)
        pairs.append((ids, numpy.append(ids[1:], IGNORED)))
    return assemble(0, pairs, config.vocabulary, RowSize(tokens, multiple))


def routing_of(row: Row, config: ModelConfig, dtype=torch.float32) -> RowRouting:
    return route(row.positions, row.to_document, row.lengths, config.head_dim, config.rope, dtype)


def document_logits(model: UniXTrainingModel, row: Row, config: ModelConfig) -> torch.Tensor:
    """Logits [S, vocab] in document order."""
    with torch.no_grad():
        return model.logits(row.ids, routing_of(row, config))[row.to_document]
