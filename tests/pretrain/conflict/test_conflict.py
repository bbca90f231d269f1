"""Definitions of gradient conflict: what is 0, what is largest, what is noise.

And a conflict that was put there is found.
"""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.weight_names import training_names
from pretrain.conflict.blocks import BlockSizes, share_out, split_targets
from pretrain.conflict.estimates import estimate
from pretrain.conflict.gradients import gram_matrices, groups_that_fit, matrices
from pretrain.system.errors import UserError
from tests.model.tiny_hf import QWEN3, QWEN25, document
from tests.model.tiny_training import routing_of, row_of, training_config, training_model
from tests.pretrain.tiny_run import read_metrics, write_config
from tools.analysis.conflict_profile import estimates, shared_lines

SIZES = BlockSizes(blocks=8, targets=12)
PLANTED = (0, 5)


def rows_for(config, count: int = 40):
    """Rows of captioned pictures in both directions and of plain text, all different."""
    for index in range(count):
        documents = [
            document([5, 8], index),
            document([0, 7, 6], index + 1),
            document([9], index + 2),
            document([4, 6, 3], index),
        ]
        yield row_of(documents, config, tokens=80)


class PlantedConflict(torch.nn.Module):
    """Has the weights of a shared transformer; the gradient of each is known.

    A target's loss is a weight's product with the sum of a direction and noise. The direction is the same for text and
    pictures, but in the layers `opposed` it is turned round for pictures.
    """

    def __init__(self, config, opposed=PLANTED, noise: float = 1.0):
        super().__init__()
        self.config, self.opposed, self.noise = config, opposed, noise
        generator = torch.Generator().manual_seed(0)
        real = dict(training_model(config).named_parameters())
        self.weights = {name: torch.nn.Parameter(torch.zeros(real[name].shape)) for name in training_names(config)}
        self.directions = {
            name: torch.randn(weight.shape, generator=generator) for name, weight in self.weights.items()
        }

    def named_parameters(self, *_, **__):
        return iter(self.weights.items())

    def forward(self, ids, labels, targets, routing):
        generator = torch.Generator().manual_seed(int(ids.sum()))
        losses = []
        for label in labels[targets].tolist():
            total = 0.0
            for name, weight in self.weights.items():
                layer = int(name.split(".")[2]) if "layers" in name else -1
                turned = -0.5 if layer in self.opposed and self.config.vocabulary.is_code(label) else 1.0
                direction = turned * self.directions[name] + self.noise * torch.randn(weight.shape, generator=generator)
                total = total + (weight * direction).sum()
            losses.append(total)
        return torch.stack(losses), labels[targets]


def measured(model, config, sizes=SIZES):
    shares = share_out(rows_for(config), config.vocabulary, sizes)
    names = list(matrices(model))
    return estimates(config, {name: g.numpy() for name, g in gram_matrices(model, config, shares, sizes, names)})


def test_a_conflict_in_layers_0_and_5_is_found_exactly_there():
    config = training_config(layer_kinds=("shared",) * 8, hidden_size=16, intermediate_size=16, head_dim=4)
    lines = measured(PlantedConflict(config), config)
    for part in ("layer", "attention", "ffn"):
        shown = shared_lines(lines, part)
        assert [line.layer for line in shown] == list(range(8))
        for line in shown:
            if line.layer in PLANTED:
                assert line.low > 0.5 and line.noise_free < -0.8, line
            else:
                assert line.low < 0 < line.high and abs(line.conflict) < 0.1 and line.noise_free > 0.9, line
    assert sum(line.low > 0 for line in shared_lines(lines, "layer")) == len(PLANTED)


def test_identical_gradients_have_no_conflict_and_opposed_ones_have_all():
    """Without noise the numbers are exact."""
    config = training_config(layer_kinds=("shared",) * 2, hidden_size=16, intermediate_size=16, head_dim=4)
    same, other = shared_lines(measured(PlantedConflict(config, opposed=(1,), noise=0.0), config), "layer")
    assert same.conflict == pytest.approx(0, abs=1e-5) and same.between == pytest.approx(1) == same.halves
    assert other.conflict == pytest.approx(2, abs=1e-5) == other.high and other.noise_free == pytest.approx(-1)


def gram_of(text: numpy.ndarray, image: numpy.ndarray) -> numpy.ndarray:
    """Gradients [blocks, n] of both modalities -> their inner products."""
    gradients = numpy.concatenate((text, image))
    return gradients @ gradients.T


def test_gradients_that_cancel_have_no_direction():
    """With pictures exactly against text the halves are sums of nothing.

    The baseline is 0, not a number of rounding.
    """
    direction = numpy.ones((6, 50))
    found = estimate(gram_of(direction, -direction))
    assert (found.between, found.halves, found.conflict) == (pytest.approx(-1), 0.0, pytest.approx(1))
    nothing = estimate(gram_of(direction, 0 * direction))
    assert nothing.between == 0 and math.isnan(nothing.noise_free) and nothing.halves == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_an_estimate_does_not_depend_on_the_scale_of_gradients(seed, scale, other):
    generator = numpy.random.default_rng(seed)
    text, image = generator.standard_normal((2, 8, 30)) + 0.5
    plain, scaled = (
        estimate(gram_of(text, image), replicates=50),
        estimate(gram_of(scale * text, scale * image), replicates=50),
    )
    assert scaled.conflict == pytest.approx(plain.conflict, abs=1e-9) and scaled.low == pytest.approx(
        plain.low, abs=1e-9
    )
    assert plain.low <= plain.conflict <= plain.high and -1.001 <= plain.halves <= 1.001
    between = estimate(gram_of(text, other * image), replicates=50).between
    assert between == pytest.approx(plain.between, abs=1e-9)


def test_intervals_hold_the_value_as_often_as_they_say():
    """Against the mean of many measurements: 95 % at least.

    Quantiles of the replicates would hold it in a few cases.
    """
    generator, found = numpy.random.default_rng(0), []
    direction = generator.standard_normal((2, 300)) / math.sqrt(300)
    for _ in range(120):
        noise = generator.standard_normal((2, 16, 300)) / math.sqrt(300) * 3
        found.append(estimate(gram_of(direction[0] + noise[0], direction[1] + noise[1]), replicates=300))
    truth = numpy.mean([one.conflict for one in found])
    assert sum(one.low <= truth <= one.high for one in found) >= 0.95 * len(found)
    assert numpy.mean([one.high - one.low for one in found]) < 6 * 1.96 * numpy.std([one.conflict for one in found])


def test_noise_alone_is_no_conflict():
    generator = numpy.random.default_rng(1)
    text, image = generator.standard_normal((2, 16, 4000))
    found = estimate(gram_of(text, image))
    assert found.low < 0 < found.high and abs(found.conflict) < 0.1


@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
def test_inner_products_are_those_of_autograd(flavour):
    """The real model: gradients of each block by themselves, from the Hugging Face layout of the weights."""
    config = training_config(layer_kinds=("separated", "moe_hard", "mot", "shared"), **flavour)
    model = training_model(config)
    sizes = BlockSizes(blocks=4, targets=9)
    shares = share_out(rows_for(config), config.vocabulary, sizes)
    grams = dict(gram_matrices(model, config, shares, sizes, list(matrices(model))))
    name = "decoder.layers.3.mlp.linear_fc2.weight"
    weight = dict(model.named_parameters())[name]
    gradients = []
    for block in range(8):
        total = torch.zeros_like(weight)
        for share in shares:
            losses, _ = model(share.row.ids, share.row.labels, share.row.targets, routing_of(share.row, config))
            text, image = losses[: share.num_text], losses[share.num_text :]
            part, number = (text, share.text_block) if block < 4 else (image, share.image_block + 4)
            if number == block and len(part):
                total += torch.autograd.grad(part.sum(), weight)[0]
        gradients.append(total.flatten().double())
    expected = torch.stack(gradients) @ torch.stack(gradients).t()
    torch.testing.assert_close(grams["model.layers.3.mlp.down_proj.weight"], expected, atol=1e-9, rtol=1e-5)
    per_layer = 7
    assert (
        len(grams) == per_layer * 4 + per_layer + 3 + per_layer
    )  # vision: of separated, of moe_hard's feed-forward, of mot
    vision = grams["model.vision_layers.0.mlp.up_proj.weight"]
    assert vision[4:, 4:].diagonal().min() > 0
    lines = estimates(config, {key: gram.numpy() for key, gram in grams.items()})
    assert {(line.kind, line.met_by) for line in lines if line.matrix == "o_proj"} == {
        ("separated", "text"),
        ("separated", "vision"),
        ("moe_hard", "both"),
        ("mot", "text"),
        ("mot", "vision"),
        ("shared", "both"),
    }
    in_groups = groups_that_fit(matrices(model), sizes, memory=40_000)
    assert len(in_groups) > 3 and sum(in_groups, []) == list(matrices(model))
    for group in in_groups[:2]:
        for part, gram in gram_matrices(model, config, shares, sizes, group):
            torch.testing.assert_close(gram, grams[part])


def test_targets_are_split_by_what_they_are_and_marks_are_neither():
    config = training_config()
    vocabulary = config.vocabulary
    row = next(rows_for(config))
    text, image = split_targets(row, vocabulary)
    assert (row.labels[text] < 80).all() and (row.labels[image] >= vocabulary.image_token_offset).all()
    assert (
        len(image) == 8 + 7 + 6 and len(text) == 4 + 6 + 8 + 3 + 3
    )  # of four documents; the first token of each has no place
    plain, _ = split_targets(row, vocabulary, "plain")
    captions, _ = split_targets(row, vocabulary, "captions")
    assert len(plain) == 8 and sorted([*plain.tolist(), *captions.tolist()]) == text.tolist()


def test_blocks_have_equally_many_targets_and_share_no_row():
    config = training_config()
    shares = share_out(rows_for(config), config.vocabulary, SIZES)
    for modality in ("text", "image"):
        counts = [0] * SIZES.blocks
        for share in shares:
            number = share.num_text if modality == "text" else len(share.row.targets) - share.num_text
            if number:
                counts[share.text_block if modality == "text" else share.image_block] += number
        assert counts == [SIZES.targets] * SIZES.blocks
    for share in shares:
        codes = config.vocabulary.is_code(share.row.labels[share.row.targets])
        assert not codes[: share.num_text].any() and codes[share.num_text :].all()


def test_blocks_that_cannot_be_filled_are_refused():
    config = training_config()
    with pytest.raises(UserError, match="42 picture codes, 400 of each are wanted"):
        share_out(rows_for(config, count=2), config.vocabulary, BlockSizes(8, 50))
    for sizes in (BlockSizes(5, 9), BlockSizes(2, 9), BlockSizes(8, 0)):
        with pytest.raises(UserError, match="even number"):
            share_out([], config.vocabulary, sizes)


def test_watching_a_training_changes_nothing_of_it_and_is_logged(commands, tiny_data, tmp_path):
    runs = []
    for name, extra in (
        ("plain", []),
        ("watched", ["log.conflict_every=2", "log.conflict_targets=3", "log.heldout_rows=16"]),
    ):
        done = commands.run(
            "pretrain/train.py", "--config", write_config(tiny_data, tmp_path / name), "run.steps=4", *extra
        )
        assert done.code == 0, done.err
        runs.append(read_metrics(tmp_path / name))
    plain, watched = ([line for line in run if "train/loss" in line] for run in runs)
    assert plain == watched
    seen = [line for line in runs[1] if "conflict/mean" in line]
    assert [line["step"] for line in seen] == [2, 4]
    names = {
        f"conflict/{matrix}_0{layer}" for matrix in ("o_proj", "down_proj") for layer in (1, 2)
    }  # of shared layers
    assert set(seen[0]) == {"step", "conflict/mean", *names} and seen[0] != {**seen[1], "step": 2}
    assert all(-2 <= value <= 2 for name, value in seen[0].items() if name != "step")


def test_a_watch_that_cannot_be_is_refused(commands, tiny_data, tmp_path):
    path = write_config(tiny_data, tmp_path / "run")

    def refused(*overrides: str) -> str:
        done = commands.run("pretrain/train.py", "--config", path, "log.conflict_every=2", *overrides)
        assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
        return done.err

    assert "raise log.heldout_rows" in refused("log.conflict_targets=5000")
    assert "data.heldout" in refused("data.heldout=''")
    assert "whole model" in refused("parallel.pipeline=2")
