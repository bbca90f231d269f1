"""The text path of an export, a tuned or merged one too, as a plain folder; folders that are no whole export say why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model.hf.modeling_uni_x import UniXForCausalLM
from pretrain.system.errors import UserError
from tests.tools.tiny_export import write_export
from tools.export.from_checkpoint import export_text_of


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture
def copy(export, tmp_path) -> Path:
    shutil.copytree(export, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "several files"])
def test_its_logits_are_those_of_the_export_to_the_last_bit(export, tmp_path, shards):
    model = UniXForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    source = tmp_path / "tuned"
    shutil.copytree(export, source)
    if shards:
        (source / "model.safetensors").unlink()
        model.save_pretrained(source, max_shard_size="20KB")
        assert (source / "model.safetensors.index.json").is_file()
    export_text_of(source, tmp_path / "plain")
    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, offset = torch.arange(5, 40)[None], model.config.image_token_offset
    with torch.no_grad():
        assert torch.equal(plain.eval()(ids).logits, model(ids).logits[..., :offset])
    values = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert values["vocab_size"] == offset and "auto_map" not in values
    assert not [key for key in values if "image" in key or "vision" in key]
    assert f"as the export {source.name} has it" in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


def refusal(folder: Path) -> str:
    """The line that refuses it; nothing is written beside."""
    with pytest.raises(UserError) as refused:
        export_text_of(folder, folder.parent / "plain")
    assert not list(folder.parent.glob("plain*")) and "\n" not in str(refused.value)
    return str(refused.value)


def changed_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_without_code_rows_still_has_its_text_and_one_without_text_rows_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    offset = json.loads((copy / "config.json").read_text())["image_token_offset"]
    for rows, told in ((offset, ""), (offset - 1, f"has {offset - 1} rows, and text alone needs {offset}")):
        cut = {name: tensor[:rows].clone() if tensor.shape[0] > offset else tensor for name, tensor in weights.items()}
        save_file(cut, copy / "model.safetensors", {"format": "pt"})
        if told:
            said = refusal(copy)
            assert told in said and "embed_tokens" in said and "without a tokenizer" in said
        else:
            export_text_of(copy, copy.parent / "plain")
            shutil.rmtree(copy.parent / "plain")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_missing_is_named(copy, name):
    (copy / name).unlink()
    assert f"has no {name}" in refusal(copy)


def test_quantized_weights_adapters_and_other_models_are_refused_by_name(copy):
    changed_config(copy, quantization_config={"quant_method": "bitsandbytes"})
    assert "is quantized (bitsandbytes)" in refusal(copy)
    changed_config(copy, quantization_config=None)
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, copy / "model.safetensors")
    assert f"{name} is I8, a quantized weight" in refusal(copy)
    save_file({key: weight for key, weight in weights.items() if key != name}, copy / "model.safetensors")
    assert f"has no {name}" in refusal(copy)
    (copy / "model.safetensors").write_bytes(b"\0" * 20)
    assert "model.safetensors: cannot be read" in refusal(copy)
    (copy / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(copy)
    changed_config(copy, model_type="qwen3")
    assert "model_type 'qwen3', not 'uni_x'" in refusal(copy)
    (copy / "adapter_config.json").write_text("{}")
    assert "holds an adapter: merge it" in refusal(copy)


def test_the_command_refuses_what_does_not_go_with_it(commands, copy):
    done = commands.run("tools/convert_to_hf.py", "--export", copy, "--output", copy.parent / "plain")
    assert done.code == 2 and "--text-only" in done.err
    done = commands.run("tools/convert_to_hf.py", "--export", copy, "--output", copy, "--text-only")
    assert done.code == 2 and "is the export that is read" in done.err and (copy / "vq").is_dir()
    done = commands.run("tools/convert_to_hf.py", "--export", copy, "--output", copy.parent / "plain", "--text-only")
    assert done.code == 0 and (copy.parent / "plain" / "model.safetensors").is_file()
