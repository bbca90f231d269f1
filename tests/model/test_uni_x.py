"""The training model against the Hugging Face one, and what must never leak."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from model.config import layer_kinds
from model.loss import token_losses
from model.vocabulary import IGNORED
from model.weight_names import from_hugging_face, to_hugging_face, training_names
from pretrain.sample_images import hugging_face_model
from tests.model.tiny_hf import QWEN3, QWEN25, document
from tests.model.tiny_training import document_logits, routing_of, row_of, training_config, training_model

MIXED = [document([5]), document([3, 9, 4], 1), document([0, 9, 2, 9], 2), document([1, 9, 0], 3)]
KINDS = {
    "uni-x": layer_kinds(5, 2, 1),
    "all shared": layer_kinds(4, 0, 0),
    "all separated": layer_kinds(3, 3, 0),
    "shared ends": ("shared", "separated", "shared"),
    "mixture of transformers": layer_kinds(3, kind="mot", every=1),
    "mot ends": layer_kinds(4, 1, 2, kind="mot"),
    "hard mixture of experts": layer_kinds(4, kind="moe_hard", every=2),
    "all moe_hard": layer_kinds(3, kind="moe_hard", every=1),
    "all four kinds": ("moe_hard", "separated", "moe_hard", "mot", "shared", "mot", "separated"),
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_training_and_hugging_face_logits_agree(kinds, flavour, tied):
    config = training_config(layer_kinds=kinds, tie_word_embeddings=tied, **flavour)
    model = training_model(config)
    row = row_of(MIXED, config, tokens=80, multiple=4)
    ours = document_logits(model, row, config)
    reference = hugging_face_model(config, model.named_parameters())
    start = 0
    for ids in MIXED:
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(ours[start : start + len(ids)], expected, atol=1e-5, rtol=1e-5)
        start += len(ids)


SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16.0,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_scaled_positions_are_alike_in_training_and_in_the_hugging_face_model(scaling):
    config = training_config(layer_kinds=KINDS["uni-x"], attention_bias=False, qk_norm=False, rope_scaling=scaling)
    model = training_model(config)
    row = row_of(MIXED, config, tokens=80, multiple=4)
    ours = document_logits(model, row, config)
    reference = hugging_face_model(config, model.named_parameters())
    with torch.no_grad():
        expected = torch.cat([reference(input_ids=torch.tensor([ids])).logits[0] for ids in MIXED])
    torch.testing.assert_close(ours[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    plain = dataclasses.replace(config, rope_scaling=None)
    assert not torch.allclose(document_logits(model, row, plain)[: len(expected)], expected, atol=1e-2)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_a_document_changes_no_other(kinds):
    config = training_config(layer_kinds=kinds)
    model = training_model(config)
    before = document_logits(model, row_of(MIXED, config, tokens=80), config)
    for changed in range(len(MIXED)):
        others = list(MIXED)
        others[changed] = [(token + 1) % 70 if token < 80 else token for token in MIXED[changed]]
        others[changed] = [90 + (token - 89) % 32 if token >= 90 else token for token in others[changed]]
        after = document_logits(model, row_of(others, config, tokens=80), config)
        start = 0
        for number, ids in enumerate(MIXED):
            part = slice(start, start + len(ids))
            same = torch.equal(before[part], after[part])
            assert same == (number != changed), f"document {number} after a change of document {changed}"
            start += len(ids)


def test_a_vision_token_changes_no_text_activation_inside_the_first_separated_block():
    config = training_config(layer_kinds=layer_kinds(4, 2, 1))
    model = training_model(config)
    seen = []
    model.decoder.layers[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    row = row_of(MIXED, config, tokens=80)
    num_text = sum(row.lengths["text"])
    for shift in (0, 1):
        ids = row.ids.clone()
        codes = config.vocabulary.is_code(ids)
        ids[codes] = 90 + (ids[codes] - 90 + shift) % 32
        with torch.no_grad():
            model.logits(ids, routing_of(row, config))
    assert torch.equal(seen[0][:num_text], seen[1][:num_text])
    assert not torch.equal(seen[0][num_text:], seen[1][num_text:])


def test_padding_changes_nothing_and_gets_no_gradient():
    config = training_config()
    model = training_model(config)
    rows = [row_of(MIXED, config, tokens) for tokens in (72, 96)]
    length = sum(map(len, MIXED))
    logits = [document_logits(model, row, config)[:length] for row in rows]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=1e-6)
    sums = []
    for row in rows:
        losses, labels = model(row.ids, row.labels, row.targets, routing_of(row, config))
        assert len(losses) == len(labels) == length - len(MIXED)
        sums.append(losses.sum().item())
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize("last", ["shared", "separated", "mot", "moe_hard"])
def test_losses_are_those_of_the_tokens_that_have_a_target(last):
    """Against the whole logits: whichever order the last layer works in, each target meets its own token's logits."""
    config = training_config(layer_kinds=("separated", "shared", last))
    model = training_model(config)
    assert model.last_order == ("document" if last == "shared" else "separated")
    row = row_of(MIXED, config, tokens=96)
    row.labels[row.targets[1::2]] = IGNORED  # as a prompt's: labels that count as nothing
    row.targets = row.targets[::2]
    with torch.no_grad():
        losses, labels = model(row.ids, row.labels, row.targets, routing_of(row, config))
        logits = model.logits(row.ids, routing_of(row, config))
    whole = torch.nn.functional.cross_entropy(logits, row.labels, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(losses, whole[row.targets])
    assert torch.equal(labels, row.labels[row.targets])
    assert losses.sum().item() == pytest.approx(whole.sum().item())


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_a_text_only_row_gives_every_weight_a_gradient(kinds):
    """ZeRO-3 and gradient buckets wait for every parameter: none may be left out, whatever a row holds."""
    config = training_config(layer_kinds=kinds)
    model = training_model(config)
    row = row_of([document([30])], config, tokens=40, multiple=4)
    losses, _ = model(row.ids, row.labels, row.targets, routing_of(row, config))
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kinds", [KINDS["uni-x"], KINDS["all four kinds"]], ids=["uni-x", "all four kinds"])
@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
def test_weight_names_round_trip(flavour, kinds):
    config = training_config(**flavour, tie_word_embeddings=False, layer_kinds=kinds)
    model = training_model(config)
    weights = dict(model.named_parameters())
    assert set(weights) == set(training_names(config))
    back = dict(from_hugging_face(config, dict(to_hugging_face(config, weights.items()))))
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("at_once", [1, 7 * 50, 10**9])
def test_loss_in_chunks_is_the_loss(at_once):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (23,), generator=generator)
    labels[::4] = IGNORED
    scale = torch.rand(23, generator=generator)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none", ignore_index=IGNORED)
    expected_gradients = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    losses = token_losses(hidden, weight, labels, at_once)
    torch.testing.assert_close(losses, expected)
    assert (losses[::4] == 0).all()
    for ours, theirs in zip(torch.autograd.grad((losses * scale).sum(), (hidden, weight)), expected_gradients):
        torch.testing.assert_close(ours, theirs)


def test_written_out_attention_is_the_fused_one(monkeypatch):
    """Documents on both sides of the limit: the same row by both ways."""
    config = training_config()
    model = training_model(config)
    row = row_of([document([7]), document([4, 9, 3], 1), document([40], 2)], config, tokens=80)
    written_out = document_logits(model, row, config)
    monkeypatch.setattr("model.attention.WRITTEN_OUT_UP_TO", 8)
    torch.testing.assert_close(document_logits(model, row, config), written_out, atol=1e-5, rtol=1e-5)


def test_building_a_model_says_nothing(caplog):
    """megatron-core 0.19 tells of every layer whose feed-forward is a spec; a user would read it 36 times."""
    with caplog.at_level(logging.WARNING):
        training_model(training_config(layer_kinds=KINDS["all four kinds"]))
    assert not [record.getMessage() for record in caplog.records if "megatron" in record.name]
