"""First weights: their spread, and what they depend on."""

from __future__ import annotations

import math

import pytest
import torch

from model.initialise import initialise
from model.tensor_shards import join, shard, whole_shape
from model.weight_names import training_names
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.model.tiny_training import training_config, training_model


@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_weight_of_the_model_has_its_spread(flavour, tied):
    config = training_config(**flavour, tie_word_embeddings=tied)
    model = training_model(config)
    initialise(config, model.named_parameters(), seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
            continue
        std = config.initializer_range
        if "linear_proj" in name or "linear_fc2" in name:
            std /= math.sqrt(2 * config.num_hidden_layers)
        assert parameter.std().item() == pytest.approx(std, rel=0.1), name


def test_a_weight_depends_on_its_name_and_the_seed_alone():
    config = training_config()

    def first(names: list[str], seed: int) -> list[torch.Tensor]:
        weights = [torch.empty(8, 8) for _ in names]
        initialise(config, zip(names, weights), seed)
        return weights

    a, b = first(["a.weight", "b.weight"], 0)
    again, other_seed = first(["b.weight"], 0)[0], first(["b.weight"], 1)[0]
    assert torch.equal(b, again)
    assert not torch.equal(a, b) and not torch.equal(b, other_seed)


@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards_make_the_whole_again(flavour, ranks):
    config = training_config(**flavour, tie_word_embeddings=False, num_key_value_heads=4, vocab_size=124)
    model = training_model(config)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == training_names(config).keys()
    for name, parameter in parameters.items():
        shards = [shard(name, parameter, rank, ranks) for rank in range(ranks)]
        assert {whole_shape(name, part.shape, ranks) for part in shards} == {tuple(parameter.shape)}, name
        assert torch.equal(join(name, shards), parameter), name


def test_every_rank_draws_its_shard_of_the_one_model():
    config, name = training_config(), "decoder.layers.0.mlp.linear_fc1.weight"
    whole, parts = torch.empty(16, 8), [torch.empty(8, 8) for _ in range(2)]
    initialise(config, [(name, whole)], seed=0)
    for rank, part in enumerate(parts):
        initialise(config, [(name, part)], seed=0, rank=rank, ranks=2)
    assert torch.equal(torch.cat((parts[0][:4], parts[1][:4])), whole[:8])  # gate
    assert torch.equal(torch.cat((parts[0][4:], parts[1][4:])), whole[8:])  # up
