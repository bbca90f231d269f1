"""Folders of each family as each version of transformers saves them: the text path keeps its logits, or one line says why."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from model.config import ModelConfig
from model.families import BY_FLAVOUR, FAMILIES, OTHERS
from model.hf_keys import check_keys
from pretrain.config import ModelSection
from pretrain.sample_images import hugging_face_model
from pretrain.setup import model_config
from pretrain.sharded_files import read_whole, stored_tensors
from pretrain.system.errors import RunFailed, UserError
from tests.commands import assert_refused
from tests.model.base_configs import CLASSES, TINY, written_by_4, written_by_5
from tests.model.tiny_hf import randomise
from tests.tools.tiny_export import SPECIALS, write_tokenizer
from tokenization.text_tokenizer import load_text_tokenizer
from tools.export.base_model import convert
from tools.export.from_checkpoint import write_tokenizer as write_exported_tokenizer
from tools.export.model_card import text_licence
from tools.export.text_only import KEPT, LEFT_OUT, of_text, plain_configuration
from tools.runs.new_run import base_section

CODES = 64
ARGUMENTS = {
    "separate": None,
    "every": 0,
    "kind": "separated",
    "vision_init": "copy",
    "new_rows": "mean",
    "codebook_size": CODES,
    "image_token_offset": 0,
    "tokenizer": None,
    "dtype": "keep",
    "seed": 0,
    "add_tokens": False,
    "verify": False,
}
IDS = torch.randint(0, 250, (2, 60), generator=torch.Generator().manual_seed(7))


def write_base(folder: Path, kind: str, **changes) -> torch.nn.Module:
    """A folder as 4.57.6 saves it, with random weights -> transformers' model."""
    model = randomise(AutoModelForCausalLM.from_config(CLASSES[kind](**{**TINY, "rope_theta": 1e6, **changes})), seed=5)
    model.save_pretrained(folder)
    write_family_tokenizer(folder, kind)
    return model


def write_family_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer.json with the end-of-text token of a family."""
    end = FAMILIES[kind].end_of_text[0]
    write_tokenizer(folder, added=() if end in SPECIALS else (end,))


def as_5_saves(folder: Path) -> None:
    """Write its config.json anew, as 5.24.0 does; weights are stored alike."""
    path = folder / "config.json"
    path.write_text(json.dumps(written_by_5(json.loads(path.read_text())), indent=2))


def converted(folder: Path, output: Path, **changes) -> tuple[ModelConfig, torch.nn.Module]:
    """The checkpoint that tools/convert_from_hf.py makes -> its configuration, and the exported model of its weights."""
    convert(argparse.Namespace(**{**ARGUMENTS, "hf": folder, "output": output, **changes}))
    config = ModelConfig.from_dict(json.loads((output / "model.json").read_text()))
    return config, hugging_face_model(config, read_whole(output, stored_tensors(output)))


@pytest.mark.parametrize("saved_by", ["4.57.6", "5.24.0"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_the_text_path_is_the_base(kind, tied, saved_by, tmp_path):
    """A line of the table in docs/starting-from-a-language-model.md."""
    base = write_base(tmp_path / "base", kind, tie_word_embeddings=tied)
    if saved_by == "5.24.0":
        as_5_saves(tmp_path / "base")
    config, model = converted(tmp_path / "base", tmp_path / "start", separate=(1, 2))
    assert (config.rope_theta, config.max_position_embeddings, config.tie_word_embeddings) == (1e6, 256, tied)
    difference = (model(IDS).logits[..., : TINY["vocab_size"]] - base(IDS).logits).abs().max()
    assert difference <= 1e-5


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("saved_by", ["4.57.6", "5.24.0"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_stretched_positions_come_in(kind, scaling, saved_by, tmp_path):
    base = write_base(tmp_path / "base", kind, rope_scaling=dict(SCALINGS[scaling]))
    plain = AutoModelForCausalLM.from_config(CLASSES[kind](**{**TINY, "rope_theta": 1e6})).eval()
    plain.load_state_dict(base.state_dict())
    if saved_by == "5.24.0":
        as_5_saves(tmp_path / "base")
    config, model = converted(tmp_path / "base", tmp_path / "start", separate=(1, 1), verify=True)
    assert config.rope_scaling == SCALINGS[scaling]
    found = model(IDS).logits[..., : TINY["vocab_size"]]
    assert (found - base(IDS).logits).abs().max() <= 1e-5
    assert (found - plain(IDS).logits).abs().max() > 1e-2


REFUSED = {
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "longrope": {"rope_scaling": {"type": "longrope", "factor": 2.0, "short_factor": [1], "long_factor": [2]}},
    "mrope": {"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 2, 1]}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 4},
    **{other: {"model_type": other} for other in ("mixtral", "mistral", "qwen2_5_vl") if other in OTHERS},
    "use_sliding_window": {"use_sliding_window": True},
    "layer_types": {"layer_types": ["sliding_attention"] * 4},
    "mlp_bias": {"mlp_bias": True},
    "quantization_config": {"quantization_config": {"bits": 4}},
}


@pytest.mark.parametrize("saved_by", ["4.57.6", "5.24.0"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", CLASSES)
def test_what_does_not_come_in_is_one_line(kind, name, saved_by, tmp_path):
    """The other lines of the table: the key and its value, before a weight is read."""
    values = {**written_by_4(kind), **REFUSED[name]}
    values = written_by_5(values) if saved_by == "5.24.0" else values
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    write_family_tokenizer(tmp_path, kind)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json: .*{name}") as error:
        converted(tmp_path, tmp_path / "start")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_biases_and_pickles_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(written_by_4("llama", attention_bias=True)))
    with pytest.raises(UserError, match="attention_bias is True"):
        converted(tmp_path, tmp_path / "start")
    (tmp_path / "config.json").write_text(json.dumps(written_by_4("llama")))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="which is a pickle: save it as safetensors"):
        converted(tmp_path, tmp_path / "start")


def test_what_is_not_kept_of_generation_is_told(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    assert "not kept" not in convert(
        argparse.Namespace(**{**ARGUMENTS, "hf": tmp_path / "base", "output": tmp_path / "a"})
    )
    base.generation_config.update(temperature=0.7, top_p=0.8, do_sample=True)
    base.generation_config.save_pretrained(tmp_path / "base")
    said = convert(argparse.Namespace(**{**ARGUMENTS, "hf": tmp_path / "base", "output": tmp_path / "b"}))
    assert "generation_config.json: not kept: temperature 0.7, top_p 0.8; exports sample" in said


def test_verify_compares_with_the_base(tmp_path, monkeypatch):
    """It is on for small folders, says by how much the two differ, and a wrong conversion writes nothing."""
    write_base(tmp_path / "base", "qwen3")
    values = {"hf": tmp_path / "base", "output": tmp_path / "start", "verify": None}
    said = convert(argparse.Namespace(**{**ARGUMENTS, **values}))
    found = re.search(r"logits differ from the base's by at most ([0-9.e-]+)", said)
    assert found and float(found[1]) < 1e-4
    monkeypatch.setattr("model.hf_source.rope_of", lambda *_: (10_000.0, None))  # what a lost key would do
    with pytest.raises(RunFailed, match="nothing was written; --no-verify"):
        convert(argparse.Namespace(**{**ARGUMENTS, **values, "output": tmp_path / "wrong"}))
    assert not (tmp_path / "wrong").exists() and not list(tmp_path.glob("wrong*"))
    said = convert(argparse.Namespace(**{**ARGUMENTS, **values, "output": tmp_path / "wrong", "verify": False}))
    assert "logits were not compared" in said


def test_a_card_names_the_licence_of_every_family_with_its_layers(monkeypatch):
    """An export has the switches of a layer only, so the second family's licence was never shown."""
    config = argparse.Namespace(attention_bias=True, qk_norm=False, image_token_offset=200_000)
    before = text_licence(config)
    other = dataclasses.replace(FAMILIES["qwen2"], flavour="other", licence="Other licence", own_vocabulary=190_000)
    monkeypatch.setitem(FAMILIES, "other", other)
    assert text_licence(config) == f"{before[:-1]}; from other: Other licence."
    config.image_token_offset = 189_999
    assert text_licence(config) == before


def test_a_value_that_a_family_does_not_take_says_which_it_takes():
    values = {"model_type": "qwen2", **TINY, "use_mrope": True}
    with pytest.raises(UserError, match="use_mrope is True: qwen2 is supported with False only, take another model"):
        check_keys(values, "config.json")


def test_a_tokenizer_without_marks_of_pictures_gets_them(tmp_path):
    """Llama's has none, and no rows to spare: they come behind its embedding, and codes behind them."""
    base = write_base(tmp_path / "base", "llama")
    tokenizer = Tokenizer.from_file(str(tmp_path / "base/tokenizer.json"))
    bare = Tokenizer(tokenizer.model)
    bare.pre_tokenizer, bare.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    bare.add_special_tokens(["</s>", *(f"<|reserved_{number}|>" for number in range(15))])
    bare.save(str(tmp_path / "base/tokenizer.json"))
    assert bare.get_vocab_size() == TINY["vocab_size"]
    with pytest.raises(UserError, match="has no token <|vision_start|>: --add-tokens adds it"):
        converted(tmp_path / "base", tmp_path / "start")
    config, model = converted(tmp_path / "base", tmp_path / "start", add_tokens=True, verify=True)
    start, end, eos = config.vision_start_token_id, config.vision_end_token_id, config.eos_token_id
    assert (start, end, eos, config.image_token_offset) == (272, 273, 256, 274)
    made = Tokenizer.from_file(str(tmp_path / "start/tokenizer.json"))
    assert [made.token_to_id(mark) for mark in ("<|vision_start|>", "<|vision_end|>")] == [start, end]
    weights = model.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(weights[:272], base.state_dict()["model.embed_tokens.weight"]) and weights[272:274].std() > 0


def test_a_text_of_llama_begins_with_its_first_token_wherever_it_is_encoded(tmp_path):
    """Llama's tokenizer.json puts `<|begin_of_text|>` before a text; training, processor and transformers do not here."""
    write_base(tmp_path / "base", "llama")
    values = json.loads((tmp_path / "base/tokenizer.json").read_text())
    alphabet = Tokenizer.from_str(json.dumps({**values, "added_tokens": []}))
    framed = Tokenizer(alphabet.model)
    framed.pre_tokenizer, framed.decoder = alphabet.pre_tokenizer, alphabet.decoder
    framed.add_special_tokens(
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|eot_id|>",
            *(f"<|reserved_{number}|>" for number in range(12)),
        ]
    )
    begin = ("<|begin_of_text|>", framed.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(single=f"{begin[0]} $A", pair=f"{begin[0]} $A $B", special_tokens=[begin])
    framed.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    framed.save(str(tmp_path / "base/tokenizer.json"))
    assert framed.encode("ab").ids[0] == begin[1]
    config, _ = converted(tmp_path / "base", tmp_path / "start", add_tokens=True, verify=True)
    text = (
        "ab <|begin_of_text|><|start_header_id|>user<|eot_id|>"  # a user's words, Llama's own marks of turns among them
    )
    trained = load_text_tokenizer(tmp_path / "start").encode([text, "ab"])
    write_exported_tokenizer(tmp_path / "base", tmp_path / "start/tokenizer.json", config)  # as an export has it
    opened = PreTrainedTokenizerFast.from_pretrained(tmp_path / "base")
    assert opened("ab")["input_ids"] == trained[1].tolist()
    assert not set(trained[0].tolist()) & set(opened.added_tokens_decoder)


@pytest.mark.parametrize("arguments", [{}, {"separate": (1, 2)}, {"every": 2, "kind": "mot"}, {"separate": (4, 0)}])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_model_section_is_written(kind, arguments, tmp_path):
    """Pasted into a configuration it makes the model that was converted, context and scaling included."""
    write_base(
        tmp_path / "base", kind, rope_scaling=dict(SCALINGS["yarn"]), tie_word_embeddings=True, rms_norm_eps=1e-5
    )
    config, _ = converted(tmp_path / "base", tmp_path / "start", **arguments)
    values = yaml.safe_load((tmp_path / "start/model.yaml").read_text())
    section = ModelSection(**values["model"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "base/tokenizer.json"))
    assert model_config(section, tokenizer, {"vq": {"codebook_size": CODES}}) == config


@pytest.mark.parametrize("own", [True, False], ids=["its own end alone", "both"])
def test_the_model_section_has_the_flavour_of_the_base(own, monkeypatch, tmp_path):
    """Not that of the first family with its layers, which ends texts with a token that the base's tokenizer lacks or has
    for something else."""
    other = dataclasses.replace(FAMILIES["qwen2"], flavour="other", end_of_text=("<other_end>",))
    monkeypatch.setitem(FAMILIES, "other", other)
    monkeypatch.setitem(BY_FLAVOUR, "other", other)
    write_base(tmp_path / "base", "qwen2")
    path = tmp_path / "base/config.json"
    path.write_text(path.read_text().replace('"model_type": "qwen2"', '"model_type": "other"'))
    write_family_tokenizer(tmp_path / "base", "other")
    if own:
        path = tmp_path / "base/tokenizer.json"
        path.write_text(path.read_text().replace("<|endoftext|>", "<|unused|>"))
    config, _ = converted(tmp_path / "base", tmp_path / "start")
    tokenizer = Tokenizer.from_file(str(tmp_path / "start/tokenizer.json"))
    section = ModelSection(**yaml.safe_load((tmp_path / "start/model.yaml").read_text())["model"])
    assert section.flavour == "other" and tokenizer.token_to_id("<other_end>") == config.eos_token_id
    assert model_config(section, tokenizer, {"vq": {"codebook_size": CODES}}) == config
    assert base_section(tmp_path / "start")["flavour"] == "other"  # what tools/new_run.py writes
    made = json.loads((tmp_path / "start/model.json").read_text())
    (tmp_path / "start/model.json").write_text(json.dumps(made | {"of_a_newer_release": 1}))
    with pytest.raises(UserError, match="of_a_newer_release is no setting of a model in this release"):
        base_section(tmp_path / "start")
    (tmp_path / "start/model.json").write_text(json.dumps(made))
    if own:
        with pytest.raises(
            UserError, match=r"model.flavour is qwen2.5: .*<\|endoftext\|>.*: set model.flavour to other"
        ):
            model_config(dataclasses.replace(section, flavour="qwen2.5"), tokenizer, {"vq": {"codebook_size": CODES}})


@pytest.mark.parametrize(
    ("kind", "switches", "said"),
    [
        ("qwen2", {"attention_bias": False}, "k_proj.bias has no place .*attention_bias is False in the entry 'qwen2'"),
        ("llama", {"attention_bias": True}, "lacks .*k_proj.bias .*attention_bias is True in the entry 'llama'"),
        ("qwen3", {"qk_norm": False}, "k_norm.weight has no place .*qk_norm is False in the entry 'qwen3'"),
        ("llama", {"qk_norm": True}, "lacks .*k_norm.weight .*qk_norm is True in the entry 'llama'"),
    ],
)
def test_a_wrong_switch_of_an_entry_is_named(kind, switches, said, monkeypatch, tmp_path):
    write_base(tmp_path / "base", kind)
    family = FAMILIES[kind]
    plain = {**family.plain, "attention_bias": (True, False)}
    monkeypatch.setitem(FAMILIES, kind, dataclasses.replace(family, plain=plain, **switches))
    with pytest.raises(UserError, match=f"{said} of model/families.py"):
        converted(tmp_path / "base", tmp_path / "start")


def test_a_head_that_is_not_there_names_the_tie(tmp_path):
    write_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    path = tmp_path / "base/config.json"
    for tie, where in ((False, "config.json"), (None, "the entry 'llama' of model/families.py")):
        values = {**json.loads(path.read_text()), "tie_word_embeddings": tie}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        with pytest.raises(UserError, match=f"lacks lm_head.weight .*: tie_word_embeddings is False in {where}"):
            converted(tmp_path / "base", tmp_path / "start")


def test_a_start_is_not_exported(tmp_path, commands):
    write_base(tmp_path / "base", "qwen2")
    converted(tmp_path / "base", tmp_path / "start")
    done = commands.run("tools/convert_to_hf.py", "--checkpoint", tmp_path / "start", "--output", tmp_path / "model")
    assert_refused(done, "start: is a start that tools/convert_from_hf.py made", "run.init_from")


def test_a_stale_index_beside_sound_weights_is_refused(tmp_path):
    """transformers takes model.safetensors; an index's files were trained on here."""
    base = write_base(tmp_path / "base", "qwen2")
    write_base(tmp_path / "other", "qwen2", initializer_range=0.5).save_pretrained(
        tmp_path / "cut", max_shard_size="20KB"
    )
    for path in (tmp_path / "cut").glob("model*"):
        path.rename(tmp_path / "base" / path.name)
    with pytest.raises(UserError, match="remove the stale one"):
        converted(tmp_path / "base", tmp_path / "start")
    (tmp_path / "base" / "model.safetensors.index.json").unlink()
    _, model = converted(tmp_path / "base", tmp_path / "start")
    assert torch.equal(model.state_dict()["model.norm.weight"], base.state_dict()["model.norm.weight"])


@pytest.mark.parametrize("scaling", SCALINGS)
@torch.no_grad()
def test_a_plain_folder_of_the_text_path_keeps_its_positions(scaling, tmp_path):
    """What convert_to_hf.py --text-only writes says all that the model has: no field of it is forgotten."""
    base = write_base(tmp_path / "base", "llama", rope_scaling=dict(SCALINGS[scaling]))
    config, model = converted(tmp_path / "base", tmp_path / "start", separate=(1, 1))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/config.json").write_text(json.dumps(plain_configuration(config, "float32")))
    save_file(dict(of_text(config, model.state_dict().items())), tmp_path / "plain/model.safetensors", {"format": "pt"})
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert (opened(IDS).logits - base(IDS).logits).abs().max() <= 1e-5
    assert {*KEPT, *LEFT_OUT} == {field.name for field in dataclasses.fields(ModelConfig)}
    assert not set(KEPT) & set(LEFT_OUT)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_card_says_what_the_bases_weights_are_bound_to(kind, tmp_path):
    write_base(tmp_path / "base", kind)
    offset = max(151_936, FAMILIES[kind].own_vocabulary)
    config, _ = converted(tmp_path / "base", tmp_path / "start", image_token_offset=offset)
    assert any(f": {FAMILIES[kind].licence}{end}" in text_licence(config) for end in ";.")
