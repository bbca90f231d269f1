"""A start from a language model keeps all of it: the oracle is transformers' own class; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from model.config import ModelConfig
from pretrain import checkpoint
from pretrain.config import ModelSection
from pretrain.sample_images import hugging_face_model
from pretrain.setup import model_config
from pretrain.sharded_files import read_whole, stored_tensors
from tests.commands import CommandServer, Finished, assert_refused
from tests.model.tiny_hf import randomise
from tests.parallel_world import World
from tests.pretrain import checkpoint_jobs
from tests.pretrain.tiny_run import write_config
from tests.tools.exported_run import train_and_export
from tests.tools.tiny_export import write_export, write_tokenizer
from tools.export.from_checkpoint import write_weights

ROWS, CODES = 272, 64  # of the language model's embedding: more than its tokenizer has, as Qwen's are
CLASSES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def write_base(folder: Path, kind: str, tied: bool, **save) -> torch.nn.Module:
    config_class, model_class = CLASSES[kind]
    config = config_class(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=10_000.0,
        tie_word_embeddings=tied,
        max_position_embeddings=256,
    )
    model = randomise(model_class(config), seed=5)
    model.save_pretrained(folder, **save)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Path, torch.nn.Module]]:
    root = tmp_path_factory.mktemp("bases")
    return {
        f"{kind} {'tied' if tied else 'untied'}": (
            root / f"{kind}-{tied}",
            write_base(root / f"{kind}-{tied}", kind, tied),
        )
        for kind in CLASSES
        for tied in (True, False)
    }


def convert(server: CommandServer, source: Path, output: Path, *arguments: object) -> Finished:
    try:
        of_text = json.loads((source / "config.json").read_text()).get("model_type") in CLASSES
    except (OSError, ValueError):
        of_text = True
    codes = ("--codebook-size", CODES) if of_text and "--codebook-size" not in arguments else ()
    return server.run("tools/convert_from_hf.py", "--hf", source, "--output", output, *codes, *arguments)


def made(server: CommandServer, source: Path, output: Path, *arguments: object) -> tuple[ModelConfig, dict]:
    done = convert(server, source, output, *arguments)
    assert done.code == 0, done.err
    assert checkpoint.find(output) == output
    config = ModelConfig.from_dict(json.loads((output / "model.json").read_text()))
    return config, dict(read_whole(output, stored_tensors(output)))


@pytest.mark.parametrize("name", ["qwen2 tied", "qwen2 untied", "qwen3 tied", "qwen3 untied"])
@torch.no_grad()
def test_text_logits_are_the_base_llms(commands, bases, tmp_path, name):
    folder, base = bases[name]
    config, weights = made(commands, folder, tmp_path / "start", "--separate", 1, 2)
    assert config.layer_kinds == ("separated", "shared", "separated", "separated")
    assert (config.image_token_offset, config.vocab_size) == (ROWS, 384)  # 272 + 64 codes, up to a multiple of 64
    model = hugging_face_model(config, weights.items())
    ids = torch.randint(0, 250, (3, 40), generator=torch.Generator().manual_seed(7))
    assert (model(ids).logits[..., :ROWS] - base(ids).logits).abs().max() <= 1e-5
    embedding = weights["embedding.word_embeddings.weight"]
    old = base.state_dict()["model.embed_tokens.weight"]
    new = embedding[ROWS:]
    assert torch.equal(embedding[:ROWS], old) and new.isfinite().all() and new.std(0).min() > 0
    assert (new.mean(0) - old.mean(0)).abs().max() < 0.1 * old.std(0).max()
    assert ("output_layer.weight" in weights) == name.endswith("untied")


@pytest.mark.parametrize("kind, every", [("mot", 1), ("moe_hard", 2)])
@torch.no_grad()
def test_a_baseline_starts_as_the_base_llm_for_pictures_too(commands, bases, tmp_path, kind, every):
    """All its vision weights are copies of the text ones, so it is the shared transformer of the same base."""
    folder, _ = bases["qwen2 untied"]
    config, weights = made(commands, folder, tmp_path / "start", "--kind", kind, "--every", every)
    assert config.layer_kinds == (("mot",) * 4 if kind == "mot" else ("shared", "moe_hard") * 2)
    plain_config, plain = made(commands, folder, tmp_path / "plain")
    ids = torch.tensor([[5, 9, *range(ROWS, ROWS + 9), 3]])
    expected = hugging_face_model(plain_config, plain.items())(ids).logits
    torch.testing.assert_close(hugging_face_model(config, weights.items())(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_vision_weights_are_copies_or_random(commands, bases, tmp_path):
    folder, _ = bases["qwen3 untied"]
    _, copied = made(commands, folder, tmp_path / "copied", "--separate", 1, 1)
    _, random = made(commands, folder, tmp_path / "random", "--separate", 1, 1, "--vision-init", "random")
    _, again = made(commands, folder, tmp_path / "again", "--separate", 1, 1, "--vision-init", "random")
    _, other = made(commands, folder, tmp_path / "other", "--separate", 1, 1, "--vision-init", "random", "--seed", 1)
    vision = [name for name in copied if ".vision." in name]
    assert len(vision) == 2 * 8
    assert all(torch.equal(copied[name], copied[name.replace(".vision.", ".text.")]) for name in vision)
    matrices = [name for name in vision if "norm" not in name]
    assert not any(torch.equal(copied[name], random[name]) for name in matrices)
    assert all(torch.equal(random[name], again[name]) for name in random)
    assert not any(torch.equal(random[name], other[name]) for name in matrices)
    assert all(torch.equal(copied[name], random[name]) for name in copied if name not in vision)


def test_shards_types_and_new_rows(commands, tmp_path):
    base = write_base(tmp_path / "one", "qwen2", True)
    base.bfloat16().save_pretrained(tmp_path / "many", max_shard_size="20KB")
    write_tokenizer(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    base.save_pretrained(tmp_path / "half")
    write_tokenizer(tmp_path / "half")
    _, many = made(commands, tmp_path / "many", tmp_path / "a")
    _, half = made(commands, tmp_path / "half", tmp_path / "b")
    assert {tensor.dtype for tensor in many.values()} == {torch.bfloat16}
    assert all(torch.equal(many[name], half[name]) for name in half) and many.keys() == half.keys()
    _, wide = made(commands, tmp_path / "many", tmp_path / "c", "--dtype", "fp32", "--new-rows", "random")
    name = "embedding.word_embeddings.weight"
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert torch.equal(wide[name][:ROWS], many[name][:ROWS].float())
    assert not torch.equal(wide[name][ROWS:], many[name][ROWS:].float())
    config, quirk = made(commands, tmp_path / "many", tmp_path / "d", "--image-token-offset", 260)
    assert config.image_token_offset == 260 and torch.equal(quirk[name][:260], many[name][:260])
    assert not torch.equal(quirk[name][260:ROWS], many[name][260:ROWS])


@pytest.mark.parametrize("kind", CLASSES)
def test_the_model_is_the_one_that_a_run_makes(commands, bases, tmp_path, kind):
    """Sizes and ids as pretrain/setup.py derives them from a configuration, the tokenizer and the shards."""
    folder, _ = bases[f"{kind} tied"]
    config, _ = made(commands, folder, tmp_path / "start", "--separate", 1, 1)
    section = ModelSection(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        shallow=1,
        deep=1,
        flavour="qwen3" if kind == "qwen3" else "qwen2.5",
        rope_theta=10_000.0,
        image_token_offset=ROWS,
    )
    manifest = {"vq": {"codebook_size": CODES}}
    ours = model_config(section, Tokenizer.from_file(str(folder / "tokenizer.json")), manifest)
    assert {**ours.to_dict(), "max_position_embeddings": 256} == config.to_dict()


def test_an_export_comes_back_bit_for_bit(commands, tmp_path):
    folder = write_export(tmp_path / "export", vocab_size=384)
    config, weights = made(commands, folder, tmp_path / "start")
    expected = load_file(folder / "model.safetensors")
    back = tmp_path / "back"
    back.mkdir()
    assert write_weights(tmp_path / "start", back, config) == "float32"
    found = load_file(back / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert_refused(convert(commands, folder, tmp_path / "x", "--separate", 1, 1), "layer kinds of its own")


def test_a_published_model_gives_the_published_logits(commands, tmp_path):
    """Its folder is made here from the reference's weights under the published names and settings."""
    from safetensors import safe_open

    from tests.model.test_golden import REFERENCE

    with safe_open(REFERENCE, framework="pt") as file:
        sizes = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    folder = tmp_path / "published"
    folder.mkdir()
    weights = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
    save_file(weights, folder / "model.safetensors")
    values = {
        "model_type": "qwen3",
        "hidden_size": sizes["H"],
        "intermediate_size": sizes["I"],
        "head_dim": sizes["hd"],
        "num_hidden_layers": sizes["L"],
        "num_attention_heads": sizes["nh"],
        "num_key_value_heads": sizes["nkv"],
        "num_vision_encode_layers": sizes["enc"],
        "num_vision_decode_layers": sizes["dec"],
        "real_text_vocab_size": sizes["V"],
        "vision_vocab_size": sizes["C"],
        "vocab_size": sizes["V"] + sizes["C"],
        "vision_start_id": sizes["vision_start_id"],
        "rope_theta": sizes["rope_theta"],
        "hidden_act": "silu",
        "rms_norm_eps": sizes["rms_norm_eps"],
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_share_ffn": 1,
        "skip_connection_loc": -1,
        "rope_scaling": None,
    }
    (folder / "config.json").write_text(json.dumps(values))
    names = {"<|vision_start|>": sizes["vision_start_id"], "<|vision_end|>": sizes["vision_end_id"], "<|endoftext|>": 0}
    ids = {number: name for name, number in names.items()}
    words = {ids.get(number, f"word{number}"): number for number in range(sizes["V"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word5"))
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(folder / "tokenizer.json"))
    config, weights = made(commands, folder, tmp_path / "start")
    model = hugging_face_model(config, weights.items())
    for case in range(4):
        with torch.no_grad():
            logits = model(tensors[f"case{case}.input_ids"][None]).logits[0, :, : sizes["V"] + sizes["C"]]
        assert (logits - tensors[f"case{case}.logits"]).abs().max() <= 2e-5
    (folder / "tokenizer.json").unlink()
    done = convert(commands, folder, tmp_path / "bare")
    assert done.code == 0 and done.out.startswith("warning: ") and "--tokenizer" in done.out
    assert json.loads((tmp_path / "bare/model.json").read_text()) == config.to_dict()
    (folder / "config.json").write_text(json.dumps({**values, "add_share_ffn": 1}))
    assert_refused(convert(commands, folder, tmp_path / "x"), "add_share_ffn is 1")


@pytest.mark.parametrize("name", ["qwen2 tied", "qwen3 untied"])
def test_through_four_processes_and_back_bit_for_bit(commands, bases, tmp_path, world: World, name):
    """HF folder -> checkpoint -> 2 tensor- x 2 pipeline-parallel ranks -> their checkpoint -> HF weights."""
    config, start = made(commands, bases[name][0], tmp_path / "start", "--separate", 1, 1)
    world.run(checkpoint_jobs.load_and_save, 4, config=config, start=tmp_path / "start", output=tmp_path / "four")
    assert len(list((tmp_path / "four").glob("*.distcp"))) == 4
    for source in ("start", "four"):
        (tmp_path / f"{source}-hf").mkdir()
        write_weights(tmp_path / source, tmp_path / f"{source}-hf", config)
    ours, theirs = (load_file(tmp_path / f"{source}-hf/model.safetensors") for source in ("start", "four"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    base = load_file(bases[name][0] / "model.safetensors")
    for key, tensor in base.items():
        assert torch.equal(ours[key][: len(tensor)], tensor), key


def test_a_folder_that_transformers_cannot_open_is_told(commands, bases, tmp_path):
    """Its own class refuses an empty rope_scaling, which scales nothing in ours."""
    shutil.copytree(bases["qwen2 untied"][0], tmp_path / "base")
    values = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**values, "rope_scaling": {}}))
    done = convert(commands, tmp_path / "base", tmp_path / "start")
    assert done.code == 1 and "Traceback" not in done.err and "transformers cannot open it (KeyError" in done.err
    made(commands, tmp_path / "base", tmp_path / "start", "--no-verify")


def test_options_that_a_uni_x_folder_has_no_use_for_are_refused(commands, tmp_path):
    write_export(tmp_path / "export")
    for words in (("--new-rows", "random"), ("--codebook-size", 5), ("--image-token-offset", 400)):
        done = convert(commands, tmp_path / "export", tmp_path / "start", *words)
        assert_refused(done, f"{words[0]} {words[1]}", "picture codes of its own")


def test_what_does_not_fit_is_refused_by_name(commands, bases, tmp_path):
    folder, _ = bases["qwen2 untied"]
    values, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    tokenizer = (folder / "tokenizer.json").read_text()

    def refused(*parts: str, values=values, weights=weights, tokenizer=tokenizer, arguments=()) -> None:
        source = tmp_path / "source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        (source / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
        (source / "tokenizer.json").write_text(tokenizer)
        if weights is not None:
            save_file(weights, source / "model.safetensors")
        assert_refused(convert(commands, source, tmp_path / "output", *arguments), *parts)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]

    key = "model.layers.1.mlp.up_proj.weight"
    refused(key, "lacks", weights={name: tensor for name, tensor in weights.items() if name != key})
    refused(
        "model.layers.0.extra.weight", "no place", weights={**weights, "model.layers.0.extra.weight": torch.zeros(2)}
    )
    refused(key, "[3, 32]", "[48, 32]", weights={**weights, key: torch.zeros(3, 32)})
    refused("BF16", "F32", "--dtype", weights={**weights, key: weights[key].bfloat16()})
    refused("rope_scaling", "dynamic", values={**values, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})
    refused("use_sliding_window", values={**values, "use_sliding_window": True})
    refused("model_type is 'gpt2'", values={**values, "model_type": "gpt2"})
    refused("hidden_act", "gelu", values={**values, "hidden_act": "gelu"})
    refused("config.json", "cannot be read", values="{")
    refused("<|vision_start|>", "--add-tokens", tokenizer=tokenizer.replace("<|vision_start|>", "<|vision|>"))
    refused("no model.safetensors", weights=None)
    refused("tie_word_embeddings is true", "lm_head", values={**values, "tie_word_embeddings": True})
    refused("do not fit in 4 layers", arguments=("--separate", 3, 2))
    refused("--image-token-offset 9", arguments=("--image-token-offset", 9))
    refused(key, "stored as I8", weights={**weights, key: weights[key].to(torch.int8)}, arguments=("--dtype", "fp32"))
    broken = weights[key].clone()
    broken[3, 4] = float("inf")
    refused(key, "not finite", weights={**weights, key: broken}, arguments=("--no-verify",))
    refused("--codebook-size 0", arguments=("--codebook-size", 0))
    refused("--codebook-size 1000000000", "at most", arguments=("--codebook-size", 10**9))
    refused("--kind mot", "--separate", arguments=("--kind", "mot"))
    refused("--vision-init random", "--separate", arguments=("--vision-init", "random", "--separate", 0, 0))
    refused("lm_head.weight is [7, 32]", weights={**weights, "lm_head.weight": torch.zeros(7, 32)})
    marks = max(Tokenizer.from_str(tokenizer).get_vocab().values()) + 1
    longer = Tokenizer.from_str(tokenizer)
    longer.add_tokens([f"word {number}" for number in range(5)])
    refused(
        f"--image-token-offset {marks + 2}",
        f"{marks + 5} ids",
        tokenizer=longer.to_str(),
        arguments=("--image-token-offset", marks + 2),
    )
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    assert_refused(convert(commands, folder, tmp_path / "mine"), "was not made by this command")
    made(commands, folder, tmp_path / "start")
    made(commands, folder, tmp_path / "start")  # its own result it replaces


@pytest.mark.parametrize("data", ["tiny_data", "shaped_data"])
def test_an_export_of_a_run_is_a_start(commands, request, data, tmp_path):
    """Its config.json has what its training taught, captions for a page, and shapes, which no base model has."""
    data = request.getfixturevalue(data)
    exported = train_and_export(commands, data, tmp_path, "export")
    done = commands.run("tools/convert_from_hf.py", "--hf", exported.folder, "--output", tmp_path / "start")
    assert done.code == 0, done.err
    config = write_config(data, tmp_path / "run")
    words = (f"run.init_from={tmp_path / 'start'}", f"data.tokenizer={exported.folder}", "run.steps=1")
    done = commands.run("pretrain/train.py", "--config", config, *words)
    assert done.code == 0, done.err
