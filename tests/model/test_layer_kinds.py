"""The baselines' layers: what a modality has of its own, what it sees.

And that equal weights make them shared layers.
"""

from __future__ import annotations

import pytest
import torch

from model.config import layer_kinds
from model.hf.configuration_uni_x import LAYER_KINDS
from model.layer_kinds import KINDS
from model.weight_names import training_names
from pretrain.sample_images import hugging_face_model
from pretrain.system.errors import UserError
from tests.model.tiny_hf import QWEN3, QWEN25, document, tiny_model
from tests.model.tiny_training import document_logits, routing_of, row_of, training_config, training_model

MIXED = [document([5]), document([3, 9, 4], 1), document([0, 9, 2, 9], 2), document([1, 9, 0], 3)]
TWO_WEIGHTS = [name for name, kind in KINDS.items() if kind.vision_weights != "none"]


def in_layer(config, index: int = 0) -> dict[str, set[str]]:
    """Weights of a layer by branch: "text" for those that text tokens meet, "vision" for those of vision tokens."""
    names = [
        name.removeprefix(f"decoder.layers.{index}.") for name in training_names(config) if f".layers.{index}." in name
    ]
    vision = {name.removeprefix("vision.") for name in names if name.startswith("vision.")}
    return {"text": {name.removeprefix("text.") for name in names if not name.startswith("vision.")}, "vision": vision}


def test_the_code_of_exports_has_the_same_kinds():
    travels = {name: (kind.vision_weights, kind.within_modality) for name, kind in LAYER_KINDS.items()}
    assert travels == {name: (kind.vision_weights, kind.within_modality) for name, kind in KINDS.items()}


@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
def test_a_modality_of_mot_has_every_weight_of_its_own_and_of_moe_hard_the_feed_forward(flavour):
    plain = in_layer(training_config(layer_kinds=("shared",), **flavour))
    assert not plain["vision"] and {"self_attention.linear_proj.weight", "pre_mlp_layernorm.weight"} <= plain["text"]
    mot = in_layer(training_config(layer_kinds=("mot",), **flavour))
    assert mot["text"] == mot["vision"] == plain["text"]
    moe = in_layer(training_config(layer_kinds=("moe_hard",), **flavour))
    assert moe["text"] == plain["text"] and moe["vision"] == {"mlp.linear_fc1.weight", "mlp.linear_fc2.weight"}


@pytest.mark.parametrize("kind", TWO_WEIGHTS)
@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
def test_every_vision_weight_changes_what_vision_tokens_become_and_nothing_else_of_the_layer(kind, flavour):
    """A weight that is there and never used, as an output projection can be, would pass every test of shapes."""
    config = training_config(layer_kinds=(kind,), tie_word_embeddings=False, **flavour)
    row = row_of(MIXED, config, tokens=80)
    model = training_model(config)
    num_text = sum(row.lengths["text"])

    def after() -> torch.Tensor:
        with torch.no_grad():
            return model.hidden_states(row.ids, routing_of(row, config)).clone()

    before = after()
    for name, parameter in model.named_parameters():
        if ".vision." not in name:
            continue
        kept = parameter.data.clone()
        parameter.data += 0.3 * torch.randn_like(kept)
        changed = (after() != before).flatten(1).any(1)
        parameter.data.copy_(kept)
        assert changed[num_text:].float().mean() > 0.4, name
        if kind != "mot" or "linear_qkv" not in name and "layernorm" not in name:  # keys and values are seen by text
            assert not changed[:num_text].any(), name


@pytest.mark.parametrize("kind", ["mot", "moe_hard"])
@pytest.mark.parametrize("flavour", [QWEN25, QWEN3], ids=["qwen2.5", "qwen3"])
def test_with_equal_weights_for_both_modalities_it_is_the_shared_transformer(kind, flavour):
    kinds = layer_kinds(3, kind=kind, every=1)
    plain_config = training_config(layer_kinds=("shared",) * 3, **flavour)
    config = training_config(layer_kinds=kinds, **flavour)
    plain, model = training_model(plain_config), training_model(config, seed=1)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name.replace(".text.", ".").replace(".vision.", ".")])
    row = row_of(MIXED, config, tokens=80, multiple=4)
    expected = document_logits(plain, row, plain_config)
    torch.testing.assert_close(document_logits(model, row, config), expected, atol=1e-5, rtol=1e-5)
    exported = hugging_face_model(config, model.named_parameters())
    plain_exported = hugging_face_model(plain_config, plain.named_parameters())
    for ids in (torch.tensor([ids]) for ids in MIXED):
        with torch.no_grad():
            torch.testing.assert_close(exported(ids).logits, plain_exported(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_seen_by_later_ones_of_its_document_or_of_its_modality_there(kind):
    """After one layer, exactly: the first document is text, a picture, text; a token of each part is changed."""
    config = training_config(layer_kinds=(kind,))
    model = training_model(config)
    documents = [document([3, 4, 3], 1), document([2, 3], 2)]
    length, visual = len(documents[0]), config.vocabulary.is_visual(torch.tensor(documents[0]))

    def after(documents) -> torch.Tensor:
        return document_logits(model, row_of(documents, config, tokens=40), config)

    before = after(documents)
    for place in range(length):
        other = list(documents[0])
        if other[place] in (80, 81, 82):
            continue
        other[place] += 1 if other[place] not in (79, 121) else -1
        changed = (after([other, documents[1]]) != before).any(1)
        expected = torch.zeros(len(before), dtype=torch.bool)
        expected[place:length] = (visual == visual[place])[place:] if KINDS[kind].within_modality else True
        assert torch.equal(changed, expected), place


@pytest.mark.parametrize(
    "arguments, kinds",
    [
        ((4, 1, 2, "mot"), "mot shared mot mot"),
        ((5, 0, 0, "moe_hard", 2), "shared moe_hard shared moe_hard shared"),
        ((2, 0, 0, "mot", 1), "mot mot"),
        ((2, 0, 0, "separated"), "shared shared"),
        ((2, 0, 0, "shared"), "shared shared"),
    ],
)
def test_layers_are_chosen_by_their_ends_or_by_every_so_many(arguments, kinds):
    assert layer_kinds(*arguments) == tuple(kinds.split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 3, 2, "mot"), "do not fit"),
        ((4, 1, 0, "mot", 2), "one or the other"),
        ((4, 0, 0, "mot", 5), "would be none"),
        ((4, 1, 0, "shared"), "which other kind"),
    ],
)
def test_layers_that_cannot_be_chosen_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        layer_kinds(*arguments)


@pytest.mark.parametrize("kind", TWO_WEIGHTS)
def test_text_only_input_never_computes_vision_weights(kind):
    model = tiny_model(seed=1, layer_kinds=(kind, "shared"))
    model.model.vision_layers["0"].mlp.forward = None  # a call would raise
    model(torch.tensor([document([12])]))
    with pytest.raises(TypeError):
        model(torch.tensor([document([3, 4])]))
