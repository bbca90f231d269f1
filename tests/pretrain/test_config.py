"""Configuration: what is refused and in which words, what is kept, and the files that ship."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import TrainConfig, dump_config, load_config
from pretrain.system.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "pretrain/configs").glob("*.yaml"))
SMALLEST = {
    "run": {"folder": "r", "steps": 5},
    "model": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "shallow": 1,
        "deep": 1,
    },
    "data": {"tokenizer": "t", "vq": "v", "sources": [{"path": "a"}, {"path": "b", "weight": 2}]},
    "optim": {"lr": "1e-4"},
    "checkpoint": {"every": 2},
}


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))
    return file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_fill_what_the_file_leaves_out(path):
    config = load_config(path)
    assert config.optim.lr == 1e-4  # which YAML reads as a string
    assert [(source.path, source.weight) for source in config.data.sources] == [("a", 1.0), ("b", 2.0)]
    assert (config.run.precision, config.checkpoint.keep, config.log.every) == ("fp32", 2, 10)


def test_overrides_win_and_are_read_as_yaml(path):
    config = load_config(
        path,
        [
            "optim.lr=3e-4",
            "run.folder=a=b",
            "data.train_on_prompts=true",
            "log.sample_prompts=[a cat, 'dog: a']",
            "data.sources=[{path: c, weight: 0.5}]",
            "log.every=3",
            "log.every=4",
        ],
    )
    assert (config.optim.lr, config.run.folder, config.data.train_on_prompts) == (3e-4, "a=b", True)
    assert config.log.sample_prompts == ("a cat", "dog: a")
    assert [(source.path, source.weight) for source in config.data.sources] == [("c", 0.5)]
    assert config.log.every == 4


FUSED = ["run.kernels=transformer_engine", "run.precision=bf16"]


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["run.kernels=te"], ["run.kernels", "'te'", "torch or transformer_engine"]),
        (["run.fp8=delayed"], ["command line: run.fp8 is 'delayed'", "run.kernels=transformer_engine"]),
        (["run.kernels=transformer_engine"], ["run.kernels", "run.precision is fp32", "run.precision=bf16"]),
        ([*FUSED, "model.head_dim=12"], ["model.head_dim is 12", "run.kernels=torch"]),
        ([*FUSED, "model.head_dim=264"], ["up to 256", "model.head_dim is 264"]),
        ([*FUSED, "run.engine=zero3"], ["run.engine zero3", "run.engine=megatron"]),
        ([*FUSED, "run.fp8=current"], ["data.row_multiple is 8", "a multiple of 16"]),
        ([*FUSED, "run.fp8=current", "data.row_multiple=16", "parallel.tensor=2", "parallel.sequence=true"], ["of 32"]),
        (["run.precision=fp8"], ["run.fp8=delayed", "run.kernels=transformer_engine"]),
        (["parallel.gradients=fp16"], ["parallel.gradients", "fp32 or bf16"]),
        (["parallel.gradients=bf16"], ["run.precision is fp32", "run.precision=bf16"]),
    ],
)
def test_kernels_refuse_what_they_exclude(path, overrides, parts):
    message = refusal(path, *overrides)
    assert all(part in message for part in parts), message


def test_kernels_that_fit_are_taken(path):
    config = load_config(path, [*FUSED, "run.fp8=delayed", "data.row_multiple=16"])
    assert (config.run.kernels, config.run.fp8) == ("transformer_engine", "delayed")


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["optim.warmup=1"], ["unknown key optim.warmup", "did you mean optim.warmup_steps"]),
        (["data.row_lenght=64"], ["data.row_lenght", "did you mean data.sequence_length"]),
        (["dta.workers=1"], ["dta", "did you mean data"]),
        (["data.sources=[{path: a, wieght: 2}]"], ["data.sources[0].wieght", "weight"]),
        (["run.steps=many"], ["run.steps", "'many'", "int"]),
        (["run.steps=1.5"], ["run.steps", "1.5", "int"]),
        (["run.steps=true"], ["run.steps", "True", "int"]),
        (["run.folder=7"], ["run.folder", "7", "str"]),
        (["optim.lr=fast"], ["optim.lr", "'fast'", "float"]),
        (["optim.lr=true"], ["optim.lr", "True", "float"]),
        (["data.train_on_prompts=1"], ["data.train_on_prompts", "1", "bool"]),
        (["log.sample_prompts=cat"], ["log.sample_prompts", "'cat'", "list"]),
        (["log.sample_prompts=[cat, no]"], ["log.sample_prompts[1]", "False", "str"]),
        (["data.sources=[a]"], ["data.sources[0]", "'a'", "section"]),
        (["data.sources=[{weight: 2}]"], ["data.sources[0].path", "missing"]),
        (["log=5"], ["log", "5", "section"]),
        (["run.precision=fp16"], ["run.precision", "'fp16'", "fp32 or bf16"]),
        (["parallel.context=2"], ["parallel.context", "not part of this project", "parallel.sequence"]),
        (["parallel.expert=2"], ["parallel.expert", "no expert layers"]),
        (["parallel.tensor=0"], ["parallel.tensor", "at least 1"]),
        (["run.engine=zero9"], ["run.engine", "'zero9'", "megatron or zero3"]),
        (["zero.stage=0"], ["zero.stage", "0", "1 or 2 or 3"]),
        (["zero.offlad=true"], ["zero.offlad", "did you mean zero.offload"]),
        (["run.resume=yes"], ["run.resume", "True"]),
        (["model.flavour=gemma"], ["model.flavour", "'gemma'", "qwen2.5 or qwen3 or llama"]),
        (["optim.decay=exponential"], ["optim.decay", "cosine or linear or constant"]),
        (["run.steps=0"], ["run.steps", "0", "at least 1"]),
        (["data.global_batch_size=0"], ["data.global_batch_size", "at least 1"]),
        (["checkpoint.keep=0"], ["checkpoint.keep", "at least 1"]),
        (["model.num_key_value_heads=0"], ["model.num_key_value_heads", "at least 1"]),
        (["data.workers=-1"], ["data.workers", "-1", "not be negative"]),
        (["run.threads=-2"], ["run.threads", "-2", "not be negative"]),
        (["optim.warmup_steps=-1"], ["optim.warmup_steps", "not be negative"]),
        (["optim.lr=-1e-4"], ["optim.lr", "not be negative"]),
        (["optim.lr=nan"], ["optim.lr", "nan", "finite"]),
        (["optim.weight_decay=.inf"], ["optim.weight_decay", "inf", "finite"]),
        (["data.sources=[]"], ["data.sources", "empty"]),
        (["run.folder="], ["command line: run.folder is empty"]),
        (["optim.beta1=2"], ["optim.beta1 is 2.0", "below 1"]),
        (["optim.beta2=1"], ["optim.beta2 is 1.0", "below 1"]),
        (["optim.dropout=1"], ["optim.dropout is 1.0", "below 1"]),
        (["optim.eps=0"], ["optim.eps is 0.0", "above 0"]),
        (["model.rope_theta=0"], ["model.rope_theta is 0.0", "above 0"]),
        (["model.head_dim=7"], ["model.head_dim is 7", "an even number"]),
        (["data.sources=[{path: a, weight: -1}]"], ["data.sources[0].weight", "-1.0"]),
        (["data.text_to_image=1.2"], ["data.text_to_image", "1.2", "share"]),
        (["data.first_text=2"], ["data.first_text", "2.0", "share"]),
        (["data.code_noise=1.5"], ["data.code_noise", "1.5", "share"]),
        (["data.drop_source=2"], ["data.drop_source", "2.0", "share"]),
        (["data.unconditional=-0.1"], ["data.unconditional", "-0.1", "negative"]),
        (["optim.lr"], ["'optim.lr'", "section.key=value"]),
        (["=3"], ["'=3'", "section.key=value"]),
        (["optim..lr=3"], ["'optim..lr=3'", "section.key=value"]),
        (["run.steps.x=3"], ["run.steps.x=3", "run.steps is no section"]),
        (["data.sources.0.path=x"], ["data.sources.0.path=x", "no section"]),
        (["optim.lr=[1"], ["optim.lr=[1", "not a YAML value"]),
        (["run.folder=2024-02-31"], ["run.folder=2024-02-31", "not a YAML value"]),
        (["run.folder=s3://bucket/run"], ["run.folder is 's3://bucket/run'", "no URL", "give a folder"]),
        (["data.cache=s3://bucket/cache"], ["data.cache is 's3://bucket/cache'", "no URL"]),
        (['run.folder="a\\0b"'], [r"run.folder is 'a\x00b'", "remove it"]),
        (['log.sample_prompts=["\\ud800"]'], ["log.sample_prompts[0]", "remove it"]),
        (["data.sources=[{path: ''}]"], ["data.sources[0].path is empty", "code shards"]),
        (["run.threads=1000000"], ["run.threads is 1000000", "at most 10,000"]),
        (["run.timeout=1e25"], ["run.timeout is 1e+25", "at most 100,000,000"]),
        (["optim.image_loss_weight=1e300"], ["optim.image_loss_weight is 1e+300", "below 3.4e+38"]),
        (["run.timeout=0.01"], ["run.timeout is 0.01", "at least 1"]),
        (["data.stages=[{tokens: 0, shares: [1, 1]}]"], ["data.stages[0].tokens is 0.0", "above 0"]),
        (["model.image_token_offset=1e12"], ["model.image_token_offset", "at most 100,000,000"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key(path, overrides, parts):
    message = refusal(path, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "text, parts",
    [
        ("run: {folder: r}\n", ["run.steps", "missing"]),
        ("run: [1]\n", ["run", "section"]),
        ("- 1\n", ["no sections"]),
        ("", ["no sections"]),
        ("run: {folder: a\nb: c", ["not YAML"]),
        ("run: {folder: 2024-02-31}\n", ["not YAML"]),
        ("run:\n  folder: a\0\n", ["not YAML", "line 2", "'\\x00'"]),
        ("run: {folder: r, steps: 3, 4: 5}\n", ["unknown key run.4"]),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, parts):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(str(path)) and all(part in message for part in parts) and "\n" not in message, message


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run: {folder: \xe4}")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml"):
        assert str(path) in refusal(path)


def test_the_dump_reads_back_equal(path, tmp_path):
    config = load_config(path, ["log.sample_prompts=['红心', 'on', '1e-4', ' a: b ']", "optim.eps=1e-12"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "dumped.yaml") == config
    assert "红心" in dump_config(config)


PRINTABLE = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))  # YAML folds other line breaks
NUMBERS = st.floats(min_value=0, max_value=1e9, allow_nan=False)
VALUES = {
    "run.folder": st.text(PRINTABLE, min_size=1),
    "run.seed": st.integers(0, 2**62),
    "optim.lr": NUMBERS,
    "optim.eps": NUMBERS.filter(bool),
    "data.train_on_prompts": st.booleans(),
    "log.sample_prompts": st.lists(st.text(PRINTABLE)),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_any_value_given_as_an_override_arrives_and_survives_the_dump(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("override")
    (folder / "run.yaml").write_text(yaml.safe_dump(SMALLEST))
    overrides = [f"{key}={yaml.safe_dump(value, allow_unicode=True)}" for key, value in values.items()]
    config = load_config(folder / "run.yaml", overrides)
    for key, value in values.items():
        section, name = key.split(".")
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(getattr(config, section), name) == expected
    (folder / "dumped.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(folder / "dumped.yaml") == config


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abc.=[]{}:,'\"!&*#-0123456789_xe ", max_size=24))
def test_any_other_override_is_taken_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    for override in (text, f"run.folder={text}", f"optim.lr={text}"):
        try:
            assert isinstance(load_config(path, [override]), TrainConfig)
        except UserError as error:
            assert str(error).count("\n") == 0


def test_the_demo_ships():
    assert "demo.yaml" in [path.name for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_load(path, tmp_path):
    config = load_config(path)
    (tmp_path / "dumped.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_key_of_a_shipped_file_has_a_comment(path):
    """On its line, or on a line of comment right before it; items of a list need none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines)
        if re.match(r"\s+\w+: *[^\s#]", line) and " #" not in line and not before.lstrip().startswith("#")
    ]
    assert not bare, f"{path.name}: no comment on {bare}"


def test_messages_say_whose_value_it_is_and_what_it_is_called_here(path):
    assert (
        refusal(path, "optim.learning_rate=1")
        == "command line: unknown key optim.learning_rate: it is called optim.lr here"
    )
    assert refusal(path, "run.steps=x") == "command line: run.steps is 'x': expected int"
    assert refusal(path, "data.sources=[{path: a, weigt: 1}]").startswith(
        "command line: unknown key data.sources[0].weigt"
    )
    assert refusal(path, "sampling.top_k=5").startswith("command line: unknown key sampling: the file has run")
    assert refusal(path, "run.sampling.top_k=5").startswith("command line: unknown key run.sampling")
    assert refusal(path, "data.sources=[{}]").startswith("command line: data.sources[0].path is missing")
    assert refusal(path, "optim.beta1=1e400").startswith("command line: optim.beta1 is inf")
    assert refusal(path, "model.qqq=1").startswith("command line: unknown key model.qqq: model has hidden_size, ")
    path.write_text(path.read_text().replace("steps: 5", "steps: many"))
    assert refusal(path, "log.every=1") == f"{path}: run.steps is 'many': expected int"


def test_numbers_with_an_exponent_and_empty_values(path):
    config = load_config(path, ["run.steps=1e3", "log.every=2.0e+1", "run.init_from="])
    assert (config.run.steps, config.log.every, config.run.init_from) == (1000, 20, "")
    assert "expected int" in refusal(path, "run.steps=1.5") and "expected int" in refusal(path, "run.steps=")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 1\n  warmup_steps: 5\n  lr: 2\n", "key 'lr' stands twice, in lines 2 and 4"),
        ("optim: {lr: 1, lr: 2}\n", "key 'lr' stands twice, in lines 1 and 1"),
        ("run: {folder: a}\nrun: {steps: 2}\n", "key 'run' stands twice"),
        ("run: [a\n", "line 2, column 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused_and_errors_name_the_file_and_line(path, text, message):
    path.write_text(text)
    assert (
        refusal(path).startswith(f"{path}: not YAML: ") and message in refusal(path) and "unicode" not in refusal(path)
    )


def test_a_file_that_is_too_large_for_a_configuration_is_not_read(tmp_path):
    """A list of numbers of this size took PyYAML minutes, without a word."""
    path = tmp_path / "shards.json"
    path.write_text("[" + "1," * (3 << 20) + "1]")
    with pytest.raises(UserError, match=f"{path}: has 6 MB, no configuration: give a YAML file"):
        load_config(path)
