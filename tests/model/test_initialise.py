"""First weights and their cuts over tensor-parallel ranks."""

from __future__ import annotations

import math

import pytest
import torch

from model.initialise import first_weight, initialise, weight_shape
from model.tensor_shards import join, padded_rows, shard
from model.weight_names import training_names
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.model.tiny_training import training_config, training_model

FLAVOURS = pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])


@FLAVOURS
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_weight_of_the_model_has_its_shape_and_spread(flavour, tied):
    config = training_config(**flavour, tie_word_embeddings=tied)
    model = training_model(config)
    parameters = dict(model.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        name: weight_shape(config, name) for name in training_names(config)
    }
    initialise(config, parameters.items(), seed=1)
    for name, parameter in parameters.items():
        if name.endswith(("norm.weight", "bias")):
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
            continue
        std = config.initializer_range
        if "linear_proj" in name or "linear_fc2" in name:
            std /= math.sqrt(2 * config.num_hidden_layers)
        assert parameter.std().item() == pytest.approx(std, rel=0.1), name


def test_a_weight_depends_on_its_name_and_the_seed_alone():
    config = training_config()
    name, other = (f"decoder.layers.0.{branch}.mlp.linear_fc2.weight" for branch in ("text", "vision"))
    assert torch.equal(first_weight(config, name, 0), first_weight(config, name, 0))
    assert not torch.equal(first_weight(config, name, 0), first_weight(config, name, 1))
    assert not torch.equal(first_weight(config, name, 0), first_weight(config, other, 0))


@FLAVOURS
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_make_the_whole_again(flavour, size):
    config = training_config(**flavour, tie_word_embeddings=False, num_key_value_heads=4)
    for name in training_names(config):
        whole = first_weight(config, name, 0) + torch.randn(weight_shape(config, name))
        shards = [shard(name, whole, rank, size) for rank in range(size)]
        assert len({part.shape for part in shards}) == 1
        assert torch.equal(join(name, shards, config.vocab_size), whole), name


def test_a_vocabulary_that_does_not_divide_is_padded():
    config = training_config()
    name = "embedding.word_embeddings.weight"
    whole = first_weight(config, name, 0)[:121]
    shards = [shard(name, whole, rank, 4) for rank in range(4)]
    assert padded_rows(121, 4) == 124 and [len(part) for part in shards] == [31] * 4
    assert (shards[3][-3:] == 0).all() and torch.equal(join(name, shards, 121), whole)
