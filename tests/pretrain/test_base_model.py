"""What a run says of the model that it starts from: context and positions are never a default in silence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from model.config import ModelConfig
from pretrain.checkpoint import publish_alone
from pretrain.config import ModelSection, load_config
from pretrain.coordination import Coordinator
from pretrain.run_folder import resume, start_from
from pretrain.setup import model_config
from pretrain.system.errors import UserError
from tests.model.tiny_training import training_config
from tests.tools.tiny_export import write_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MANIFEST = {"vq": {"codebook_size": 64}}


@pytest.mark.parametrize(
    "state, skills",
    [
        ({"skills": ["draw"], "made_from": {}}, ["draw"]),
        ({"made_from": {"hf": "base"}}, []),  # a language model, converted by an earlier release
        ({"step": 7}, None),  # a run of an earlier release: what it learned is not known, and nothing is claimed
    ],
)
def test_what_a_run_begins_from_says_what_it_can_or_that_is_not_known(tmp_path, state, skills):
    model = training_config(max_position_embeddings=512)
    publish_alone(
        tmp_path / "start", lambda folder: (folder / "model.json").write_text(json.dumps(model.to_dict())), state
    )
    config = SimpleNamespace(
        run=SimpleNamespace(init_from=str(tmp_path / "start")), model=SimpleNamespace(max_position_embeddings=512)
    )
    found = start_from(config, SimpleNamespace(load_weights=lambda folder: None), model, Coordinator())
    assert found == skills


@pytest.mark.parametrize("init_from, skills", [("", []), ("somewhere", None)])
def test_a_run_of_an_earlier_release_that_goes_on_claims_what_is_known(tmp_path, init_from, skills):
    """Its checkpoints hold no skills: those of its own data are all only where it began from nothing."""
    model = training_config(max_position_embeddings=512)
    publish_alone(
        tmp_path / "checkpoints/step_00000003",
        lambda folder: (folder / "model.json").write_text(json.dumps(model.to_dict())),
        {"step": 3, "rows": 6, "plan": "rows"},
    )
    config = SimpleNamespace(run=SimpleNamespace(init_from=init_from, resume="auto"))
    data = SimpleNamespace(train=SimpleNamespace(plan=SimpleNamespace(fingerprint="rows")), model_config=model)
    engine = SimpleNamespace(load=lambda folder, updates: None)
    assert resume(config, tmp_path, engine, data, Coordinator()).skills == skills


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def started(tmp_path, there: ModelConfig, said: int, here: int) -> list:
    """Where the weights came from: the engine that takes them stands for either of the two."""
    publish_alone(
        tmp_path / "start", lambda folder: (folder / "model.json").write_text(json.dumps(there.to_dict())), {}
    )
    config = SimpleNamespace(
        run=SimpleNamespace(init_from=str(tmp_path / "start")), model=SimpleNamespace(max_position_embeddings=said)
    )
    taken = []
    model = ModelConfig.from_dict({**there.to_dict(), "max_position_embeddings": here})
    start_from(config, SimpleNamespace(load_weights=taken.append), model, Coordinator())
    return taken


def test_a_context_that_differs_from_the_weights_must_be_said(tmp_path):
    """A base with 131,072 positions became an export of 32,768, and so did one of 512."""
    there = training_config(max_position_embeddings=131_072)
    with pytest.raises(UserError, match="up to 131072 tokens: set model.max_position_embeddings"):
        started(tmp_path, there, said=0, here=32_768)
    assert started(tmp_path, there, said=131_072, here=131_072) == [tmp_path / "start"]
    assert started(tmp_path, there, said=512, here=512) == [tmp_path / "start"]
    assert started(tmp_path, training_config(max_position_embeddings=32_768), said=0, here=32_768)


def test_the_section_sets_context_positions_and_family(tokenizer):
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}
    section = ModelSection(**SIZES, flavour="llama", max_position_embeddings=131_072, rope_scaling=scaling)
    config = model_config(section, tokenizer, MANIFEST)
    assert (config.max_position_embeddings, config.attention_bias, config.qk_norm) == (131_072, False, False)
    assert config.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768.0}
    assert model_config(ModelSection(**SIZES), tokenizer, MANIFEST).max_position_embeddings == 32_768
    with pytest.raises(UserError, match="model: rope_scaling: rope_type 'dynamic'"):
        model_config(ModelSection(**SIZES, rope_scaling={"rope_type": "dynamic", "factor": 2}), tokenizer, MANIFEST)


def test_positions_are_read_from_yaml_and_the_command_line(tmp_path):
    source = "pretrain/configs/demo.yaml"
    config = load_config(
        source, ["model.rope_scaling={rope_type: linear, factor: 2}", "model.max_position_embeddings=9"]
    )
    assert (
        config.model.rope_scaling == {"rope_type": "linear", "factor": 2} and config.model.max_position_embeddings == 9
    )
    assert load_config(source).model.rope_scaling == {}
