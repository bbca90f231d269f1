"""An export that is damaged, or whose parts do not belong together, is refused in a line that names the part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.tools.tiny_export import write_export, write_tokenizer
from tools.export.folder import check_export, open_export


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("folder") / "export")


def damage(folder: Path, what: str) -> None:
    path = folder / what
    if what == "config.json":
        path.write_text('{"model_type": "qwen2"}')
    elif what == "codebook":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "codebook_size": 16}))
    elif " = " in what:
        key, _, value = what.partition(" = ")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: json.loads(value)}))
    elif what == "prompts":
        (folder / "unix_prompts.json").write_bytes(b"\xff")
    elif what.startswith("generation_config.json: "):
        (folder / "generation_config.json").write_bytes(what.partition(": ")[2].encode("latin-1"))
    elif what == "unknown kind":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "layer_kinds": ["conv"] * 4}))
    elif what == "vq weights":
        weights = folder / "vq" / "diffusion_pytorch_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif what == "fewer weights":
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        del tensors["model.vision_layers.0.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif what == "other tokenizer":
        write_tokenizer(folder, ("<|im_start|>", "<|im_end|>"))
    elif what == "no control tokens":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8").replace("<|vision_", "<|picture_"), encoding="utf-8")
    elif what == "cut weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config.json", "model_type 'qwen2', not 'uni_x'"),
        ("unix_prompts.json", "has no unix_prompts.json"),
        ("vq", "has no vq"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "cannot be loaded"),
        ("fewer weights", "1 missing keys, as model.vision_layers.0.mlp.up_proj.weight"),
        ("cut weights", "cannot be loaded"),
        ("unknown kind", "layer_kinds has .'conv'."),
        ('hidden_size = "128"', "config.json: hidden_size is '128', no number"),
        ("rms_norm_eps = null", "config.json: rms_norm_eps is None, no number"),
        ("skills = 5", "config.json: skills is 5: a list of texts is needed"),
        ('skills = "draw"', "config.json: skills is 'draw': a list of texts is needed"),
        ('skills = {"draw": 1}', "config.json: skills is {'draw': 1}: a list of texts is needed"),
        ('skills = ["draw", null]', "config.json: skills is .'draw', None.: a list of texts is needed"),
        ('sample_prompts = "a cat"', "config.json: sample_prompts is 'a cat': a list of texts is needed"),
        ('sample_prompts = [""]', "config.json: sample_prompts is .''.: a list of texts is needed"),
        ('sample_prompts = {"a": "b"}', "config.json: sample_prompts is {'a': 'b'}: a list of texts is needed"),
        ("sample_prompts = [1]", "config.json: sample_prompts is .1.: a list of texts is needed"),
        ("attention_sinks = true", "config.json: attention_sinks .True. is not known here"),
        ('hidden_act = "gelu"', "config.json: hidden_act is 'gelu': this model has no such thing"),
        ("image_token_offset = 250", "has 256 tokens of texts, and image codes begin at 250"),
        (
            'quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": true}',
            "needs a package that is not installed: .*bitsandbytes",
        ),
        ("prompts", "unix_prompts.json cannot be read"),
        ("generation_config.json: {half", "generation_config.json is not JSON .*export the model again"),
        ("generation_config.json: \xff", "generation_config.json is not JSON .*export the model again"),
        ("generation_config.json: [1]", "generation_config.json is .1., no object: export the model again"),
        ('generation_config.json: {"eos_token_id": "x"}', "generation_config.json: eos_token_id is 'x', no token id"),
        (
            'generation_config.json: {"pad_token_id": [true]}',
            "generation_config.json: pad_token_id is .True., no token",
        ),
        ("codebook", "a codebook of 32, the model one of 16"),
        ("vq weights", "has fingerprint"),
        (
            "other tokenizer",
            "tokenizer.json gives <.vision_start.> the id 259, config.json names 257: put the text tokenizer",
        ),
        ("no control tokens", "tokenizer.json has no <.vision_start.>, config.json names 257"),
    ],
)
def test_a_damaged_export_is_refused(export, tmp_path, what, message):
    folder = tmp_path / "export"
    shutil.copytree(export, folder)
    damage(folder, what)
    with pytest.raises(UserError, match=message) as caught:
        open_export(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, "{}", '{"eos_token_id": [256, 258], "pad_token_id": null, "temperature": 0.7}']
)
def test_generation_settings_may_be_absent_and_say_how_transformers_samples(export, tmp_path, content):
    folder = tmp_path / "export"
    shutil.copytree(export, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if content is not None:
        (folder / "generation_config.json").write_text(content)
    check_export(folder)
