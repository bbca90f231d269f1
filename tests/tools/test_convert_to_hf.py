"""A checkpoint becomes a folder that works where this repository is not: the same logits, a picture and a caption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image, ImageChops
from safetensors.torch import load_file

from model.config import ModelConfig
from model.layer_specs import transformer_config
from model.prompts import text_to_image_ids, unconditional_ids
from model.uni_x import UniXTrainingModel
from model.weight_names import to_hugging_face
from pretrain import checkpoint, runtime
from pretrain.sharded_files import read_whole, stored_tensors
from tests.commands import assert_refused
from tests.model.tiny_training import document_logits, row_of
from tests.tools.exported_run import Exported, convert, train_and_export
from tokenization.vq import load_vq
from tools.export.folder import open_export
from tools.export.from_checkpoint import UNFINISHED, write_configuration
from tools.export.model_card import captions_to_draw, licences

FLAVOURS = {
    "fp32-tied-qwen2.5": ["log.sample_prompts=['ann@example.org', 'keycap: 0', 'red apple']"],
    "bf16-untied-qwen3": ["run.precision=bf16", "model.tie_word_embeddings=false", "model.flavour=qwen3"],
    "mot": ["model.shallow=0", "model.deep=0", "model.kind=mot", "model.every=1"],
    "moe_hard": ["model.shallow=0", "model.deep=0", "model.kind=moe_hard", "model.every=2"],
}
ELSEWHERE = """
import importlib.abc, json, sys

class NoRepository(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("model", "tokenization", "pretrain", "tools", "tests", "megatron", "streaming"):
            raise ImportError(f"{name} is not for this process")

sys.meta_path.insert(0, NoRepository())

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
documents = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    assert type(model).__module__.startswith("transformers_modules.")
    print(json.dumps({"dtype": str(model.dtype), "tied": model.config.tie_word_embeddings}))
    with torch.no_grad():
        logits = [model.float()(input_ids=torch.tensor([ids])).logits[0] for ids in documents]
    torch.save(logits, "logits-" + folder.split("/")[-1] + ".pt")
"""


@pytest.fixture(scope="module")
def exports(commands, tiny_data, tmp_path_factory) -> dict[str, Exported]:
    root = tmp_path_factory.mktemp("exports")
    return {name: train_and_export(commands, tiny_data, root, name, *overrides) for name, overrides in FLAVOURS.items()}


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, without the optimizer's state."""
    return dict(read_whole(folder, [name for name in stored_tensors(folder) if not name.startswith("optimizer.")]))


def model_config(exported: Exported) -> ModelConfig:
    return ModelConfig.from_dict(json.loads((exported.checkpoint / "model.json").read_text()))


def documents_for(config: ModelConfig) -> list[list[int]]:
    vocabulary = config.vocabulary
    codes = [vocabulary.image_token_offset + code for code in range(0, 64, 4)]
    picture = [vocabulary.vision_start_id, *codes, vocabulary.vision_end_id]
    return [[5, 9, 77, *picture, 3, vocabulary.eos_id], [*picture, 8, 8, 250], list(range(30))]


@pytest.fixture(scope="module")
def elsewhere(exports, tmp_path_factory) -> tuple[Path, str]:
    """One process that cannot import this repository opens all exports -> its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    documents = documents_for(model_config(next(iter(exports.values()))))
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-W",
            "ignore",
            "-c",
            ELSEWHERE,
            json.dumps(documents),
            *(str(exported.folder) for exported in exports.values()),
        ],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("name", FLAVOURS)
def test_logits_elsewhere_are_those_of_the_training_model(exports, elsewhere, name):
    exported = exports[name]
    config = model_config(exported)
    runtime.start_distributed(0)
    model = UniXTrainingModel(config, transformer_config(config)).eval()
    weights = weights_in(exported.checkpoint)
    own = dict(model.named_parameters())
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for key, tensor in weights.items():
            own[key].copy_(tensor)
    documents = documents_for(config)
    ours = document_logits(model, row_of(documents, config, tokens=128, multiple=4), config)
    start = 0
    for ids, logits in zip(documents, torch.load(elsewhere[0] / f"logits-{name}.pt"), strict=True):
        torch.testing.assert_close(logits, ours[start : start + len(ids)], atol=1e-5, rtol=1e-5)
        start += len(ids)
    assert logits.std() > 0.01  # the model says something


def test_precision_and_tying_are_those_of_the_run(exports, elsewhere):
    said = [json.loads(line) for line in elsewhere[1].splitlines()]
    assert said[:2] == [{"dtype": "torch.float32", "tied": True}, {"dtype": "torch.bfloat16", "tied": False}]


@pytest.mark.parametrize("name", FLAVOURS)
def test_weights_are_carried_over_to_the_last_bit(exports, name):
    exported = exports[name]
    config = model_config(exported)
    found = load_file(exported.folder / "model.safetensors")
    expected = dict(to_hugging_face(config, weights_in(exported.checkpoint).items()))
    assert found.keys() == expected.keys() and ("lm_head.weight" in found) == (not config.tie_word_embeddings)
    assert all(found[key].dtype == tensor.dtype and torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_the_snippet_of_the_model_card_draws_a_picture_and_says_a_caption(exports, tmp_path):
    """As it stands, in a plain process that knows nothing of this project; it imports no diffusers, installed or not."""
    source = exports["fp32-tied-qwen2.5"].folder
    snippet = (source / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-c", snippet, str(source)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {
        line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "import time:" in line
    }
    assert "transformers" in imported and not imported & {"diffusers", "torchvision", "model", "tools"}
    assert 'processor.draw(["keycap: 0"])' in snippet, "the first of log.sample_prompts without an address"
    assert done.stdout.splitlines(), "a caption was printed; after three steps it may be empty"
    export = open_export(exports["fp32-tied-qwen2.5"].folder)
    ids = text_to_image_ids("keycap: 0", export.encode, export.vocabulary, export.templates)
    codes = export.model.generate_images(
        torch.tensor([ids]),
        unconditional_ids=torch.tensor([unconditional_ids(export.encode, export.vocabulary, export.templates)]),
        num_codes=16,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    )
    (expected,) = export.vq.decode(codes.view(1, 4, 4).numpy())
    with Image.open(tmp_path / "picture.png") as picture:
        difference = ImageChops.difference(picture, expected)
    assert expected.size == (32, 32) and max(high for _, high in difference.getextrema()) <= 1  # of 255


def test_an_export_has_the_tokenizers_and_prompts_of_training(exports, tiny_data):
    exported = exports["fp32-tied-qwen2.5"]
    folder = exported.folder
    assert (folder / "tokenizer.json").read_bytes() == (tiny_data.tokenizer / "tokenizer.json").read_bytes()
    assert load_vq(folder / "vq").fingerprint == load_vq(tiny_data.vq).fingerprint
    assert (folder / "unix_prompts.json").read_bytes() == (exported.checkpoint / "unix_prompts.json").read_bytes()
    generation = json.loads((folder / "generation_config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == settings["pad_token"] == "<|endoftext|>"
    ends = {"<|endoftext|>", "<|im_end|>"}  # of a document and of a turn
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert set(generation["eos_token_id"]) == {token["id"] for token in added if token["content"] in ends}
    assert generation["eos_token_id"][0] == generation["pad_token_id"] == model_config(exported).eos_token_id
    assert exported.command.out.splitlines() == [f"{folder}: exported from {exported.checkpoint}"]
    card = (folder / "README.md").read_text()
    assert "3 steps" in card and "4 x 4 codes out of 64" in card and "4 layers, 2 of them" in card


def test_the_model_card_has_the_figures_of_the_run(commands, exports, tiny_data, tmp_path):
    exported = exports["fp32-tied-qwen2.5"]
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    metrics = [json.loads(line) for line in (exported.run / "metrics.jsonl").read_text().splitlines()]
    heldout = [line for line in metrics if "heldout/loss_image" in line][-1]
    assert f"| heldout/loss_image, step 3 | {heldout['heldout/loss_image']:.6g} | metrics.jsonl |" in card
    config = yaml.safe_load((exported.run / "config.yaml").read_text())
    rows = json.loads((exported.checkpoint / "state.json").read_text())["rows"]
    assert f"{rows * config['data']['sequence_length']:,} tokens" in card
    for source in config["data"]["sources"]:
        counts = json.loads((Path(source["path"]) / "manifest.json").read_text())["counts"]
        assert f"| {counts['documents']:,} | {counts['text_tokens']:,} | {counts['pictures']:,} |" in card
    assert "license: other" in card and "Chameleon research licence" in card and "Qwen2.5-3B" not in card

    results = tmp_path / "figures.json"
    results.write_text('{"task": {"score": 0.25, "raw": [1, 2]}, "done": true}')
    alone = tmp_path / "alone"
    shutil.copytree(exported.checkpoint, alone)
    assert convert(commands, alone, tmp_path / "export", "--results", results).code == 0
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "| task/score | 0.25 | figures.json |" in card and "task/raw" not in card and "| done" not in card
    assert "exported without its run folder" in card and "heldout" not in card
    assert 'processor.draw(["red heart"])' in card
    for nothing in ("[1, 2]", '{"name": "words alone"}'):
        results.write_text(nothing)
        assert_refused(convert(commands, alone, tmp_path / "export", "--results", results), str(results), "no figure")
    for words in (("--vq", tiny_data.vq), ("--results", results)):
        refused = convert(commands, alone, tmp_path / "text", "--text-only", *words)
        assert_refused(refused, "--text-only goes without --vq and --results")
    results.write_text("{")
    assert_refused(convert(commands, alone, tmp_path / "export", "--results", results), str(results), "JSON")


def test_skills_are_written_where_they_are_known(exports, tmp_path):
    """Data of texts alone teaches none of them, which is not the same as a checkpoint that does not say."""
    export = exports["fp32-tied-qwen2.5"].folder
    shutil.copy(export / "tokenizer.json", tmp_path)
    values = json.loads((export / "config.json").read_text())
    assert values["skills"] == ["caption", "draw"]
    for skills, written in ((["edit"], ["edit"]), ([], []), (None, "nothing")):
        write_configuration(tmp_path, ModelConfig.from_dict(values), "float32", skills=skills)
        assert json.loads((tmp_path / "config.json").read_text()).get("skills", "nothing") == written


def test_sample_prompts_are_written_where_they_are_fit_for_a_public_page(exports, tmp_path):
    shutil.copy(exports["fp32-tied-qwen2.5"].folder / "tokenizer.json", tmp_path)
    values = json.loads((exports["fp32-tied-qwen2.5"].folder / "config.json").read_text())
    (tmp_path / "config.yaml").write_text("log: {sample_prompts: [a, 'b@c.org', '', d, e, f, g]}")
    for run, written in ((tmp_path, ["a", "d", "e", "f"]), (None, None)):
        write_configuration(tmp_path, ModelConfig.from_dict(values), "float32", captions=captions_to_draw(run))
        assert json.loads((tmp_path / "config.json").read_text()).get("sample_prompts") == written


def test_licences_follow_the_parts():
    def said(offset: int, name: str, family: str) -> tuple[str, str]:
        config = SimpleNamespace(image_token_offset=offset, attention_bias=True, qk_norm=False)
        return licences(config, SimpleNamespace(name=name, family=family))

    metadata, words = said(151_936, "chameleon", "vqgan")
    assert metadata.startswith("license: other") and "Qwen2.5-3B" in words and "forbids commercial use" in words
    metadata, words = said(4096, "openmoji-64", "vqgan")
    assert metadata == "license: cc-by-sa-4.0" and "CC BY-SA 4.0" in words and "Chameleon" not in words
    assert "Emu3" in said(4096, "mine", "emu3")[1] and "Janus" in said(4096, "mine", "janus")[1]


@pytest.mark.parametrize("name", FLAVOURS)
def test_the_text_path_alone_is_a_plain_folder(commands, exports, tmp_path, name):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "text"
    done = convert(commands, exports[name].run, folder, "--text-only")
    assert done.code == 0, done.err
    names = {path.name for path in folder.iterdir()}
    assert not [found for found in names if found.endswith(".py")] and "vq" not in names
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == ("qwen3" if "qwen3" in name else "qwen2") and "auto_map" not in values
    assert not [key for key in values if "image" in key or "vision" in key]
    whole = json.loads((exports[name].folder / "config.json").read_text())
    assert whole["text_model_type"] == values["model_type"]
    export = open_export(exports[name].folder)
    assert type(AutoConfig.from_pretrained(folder)).__name__ in ("Qwen2Config", "Qwen3Config")
    plain, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    offset = export.vocabulary.image_token_offset
    ids = torch.tensor([list(range(5, 40))])
    with torch.no_grad():
        ours, theirs = export.model(ids).logits[..., :offset], plain(ids).logits
    assert plain.config.vocab_size == offset and torch.equal(ours, theirs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = plain.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=3)
    assert said.shape[1] > 1 and tokenizer.decode(said[0]).startswith("hello")
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False).endswith("assistant\ny<|im_end|>\n")
    assert convert(commands, exports[name].run, folder).code == 0 and (folder / "vq").is_dir()  # it may be replaced


def test_generate_opens_it(commands, exports, tmp_path):
    folder = exports["fp32-tied-qwen2.5"].folder
    done = commands.run("tools/generate.py", "--model", folder, "--prompt", "red heart", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert list((tmp_path / "out").glob("*.png"))


def test_a_checkpoint_can_be_named_and_an_older_export_is_replaced(commands, exports, tmp_path):
    exported = exports["fp32-tied-qwen2.5"]
    output = tmp_path / "export"
    (output.with_name("export.partial")).mkdir()
    for name in ("leftover", UNFINISHED):
        (output.with_name("export.partial") / name).touch()
    assert convert(commands, exports["bf16-untied-qwen3"].run, output).code == 0
    (output / "stale.txt").touch()
    older = checkpoint.folder_of(exported.run, 2)
    done = convert(commands, older, output)
    assert done.code == 0 and str(older) in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and not (output / "stale.txt").exists()
    assert not (output / "leftover").exists()
    embedding = load_file(output / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embedding, weights_in(older)["embedding.word_embeddings.weight"])


def test_an_image_tokenizer_that_did_not_make_the_shards_is_refused(commands, exports, tiny_data, tmp_path):
    run, output = exports["fp32-tied-qwen2.5"].run, tmp_path / "export"
    assert_refused(convert(commands, run, output, "--vq", tiny_data.other_vq), str(tiny_data.other_vq), "--vq")
    assert_refused(convert(commands, run, output, "--vq", tmp_path / "nowhere"), "nowhere")
    assert not list(tmp_path.iterdir())
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data.vq, moved)
    assert convert(commands, run, output, "--vq", moved).code == 0
