"""The additions of docs/extending.md: each touches the files that the page names, and all work together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from tests.commands import ROOT, CommandServer
from tests.extending.additions import ADDITIONS
from tests.model.base_configs import TINY
from tests.model.tiny_hf import randomise
from tests.pretrain.tiny_run import TinyData, config_values, read_metrics
from tests.tools.tiny_export import write_tokenizer

PAGE = ROOT / "docs/extending.md"
SOURCES = ("model", "pretrain", "tokenization", "tools", "slurm")
STEPS = 3


def sections() -> dict[str, str]:
    """Heading -> text of the page's sections."""
    return {part.split("\n", 1)[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}


def test_the_page_has_a_section_for_each_addition():
    assert list(sections()) == list(ADDITIONS)


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_touches_the_files_that_its_section_names(name):
    """Its rows that begin with "if" are for some additions only."""
    rows = re.findall(r"^\| `([^`]+)` \| (if )?", sections()[name], flags=re.MULTILINE)
    needed = {file for file, condition in rows if not condition}
    assert needed <= ADDITIONS[name].files <= {file for file, _ in rows} and len(rows) == len(dict(rows))


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Iterator[CommandServer]:
    """Commands of a copy of the sources in which all additions are made."""
    root = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests").mkdir()
    for name in ("__init__.py", "command_server.py"):
        shutil.copy(ROOT / "tests" / name, root / "tests" / name)
    for addition in ADDITIONS.values():
        addition.make(root)
    server = CommandServer(tmp_path_factory.mktemp("changed"), root)
    yield server
    server.close()


def test_a_base_family_passes_the_tests_that_its_section_names(tmp_path):
    for name in (*SOURCES, "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ADDITIONS["A base family"].make(tmp_path, tests=True)
    section = sections()["A base family"]
    files = re.search(r"`pytest -k MODEL_TYPE ([^`]+)`", section)[1].split()
    command = [sys.executable, "-m", "pytest", "-q", "-k", "mistral", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    passed = re.search(r"^(\d+) passed, \d+ deselected", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0 and passed, done.stdout + done.stderr
    assert int(passed[1]) >= 20  # each of the tests of a family


def run(changed: CommandServer, script: str, *arguments: object) -> str:
    done = changed.run(script, *arguments, cwd=changed.root)
    assert done.code == 0, done.err
    return done.out


def test_all_of_them_together_from_a_base_model_to_an_evaluated_export(changed, tiny_data: TinyData, tmp_path):
    base, vq, shards, start, folder, export = (
        tmp_path / name for name in ("base", "vq", "shards", "start", "run", "export")
    )
    randomise(MistralForCausalLM(MistralConfig(**TINY, sliding_window=None)), seed=5).save_pretrained(base)
    write_tokenizer(base)
    vq.mkdir()
    (vq / "config.json").write_text('{"model_type": "flat_patches", "levels": 4, "patch": 8}')
    pictures = tiny_data.corpus / "train/folder"
    words = ("--input", pictures, "--output", shards, "--vq", vq, "--tokenizer", base, "--workers", 0)
    run(changed, "tokenization/shard_images.py", *words)
    words = ("--hf", base, "--output", start, "--separate", 1, 1, "--kind", "within", "--codebook-size", 64)
    told = run(changed, "tools/convert_from_hf.py", *words)
    assert "2 of them within" in told and "logits differ from the base's by at most" in told
    values = config_values(tiny_data, folder)
    values["data"] |= {
        "tokenizer": str(base),
        "vq": str(vq),
        "sources": [{"path": str(shards)}],
        "heldout": str(shards),
    }
    values["model"] = yaml.safe_load((start / "model.yaml").read_text())["model"]
    values["run"] |= {"engine": "plain", "steps": STEPS, "init_from": str(start)}
    assert (values["model"]["flavour"], values["model"]["kind"]) == ("llama", "within")
    values["model"]["flavour"] = "mistral"
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    run(changed, "pretrain/train.py", "--config", config)
    whole = read_metrics(folder)
    # what another engine goes on from after the first checkpoint has the same losses, to rounding
    shutil.rmtree(folder / "checkpoints" / f"step_{STEPS:08d}")
    values["run"] |= {"engine": "megatron"}
    config.write_text(yaml.safe_dump(values))
    run(changed, "pretrain/train.py", "--config", config)
    once, again = (
        {name: value for line in lines if line["step"] == STEPS for name, value in line.items() if "loss" in name}
        for lines in (whole, read_metrics(folder))
    )
    assert again == pytest.approx(once, rel=1e-5) and {"train/loss", "heldout/loss"} <= set(once)
    run(changed, "tools/convert_to_hf.py", "--checkpoint", folder, "--output", export)
    assert "nobody's" in (export / "README.md").read_text() and (export / "flat_patches_uni_x.py").is_file()
    scores = {}
    for name, flag, model in (("export", "--model", export), ("checkpoint", "--checkpoint", folder)):
        words = ("--task", "perplexity", "--config", config, "--output", tmp_path / name)
        run(changed, "tools/evaluate.py", flag, model, *words)
        scores[name] = json.loads((tmp_path / name / "perplexity.json").read_text())["scores"]
    assert (
        scores["export"] == pytest.approx(scores["checkpoint"], rel=1e-4) and scores["export"]["perplexity_image"] > 1
    )
    words = ("--prompt", "red", "--num-images", 1, "--output", tmp_path / "drawn", "--device", "cpu")
    run(changed, "tools/generate.py", "--model", export, *words)
    picture = Image.open(next((tmp_path / "drawn").glob("0000-00.png")))
    assert picture.size == (32, 32) and len(picture.getcolors()) <= 16  # a colour a patch
    plain = tmp_path / "text"
    run(changed, "tools/convert_to_hf.py", "--checkpoint", folder, "--text-only", "--output", plain)
    ids = torch.arange(3, 40)[None]
    opened = AutoModelForCausalLM.from_pretrained(plain)
    ours = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    with torch.no_grad():
        theirs, mine = opened(ids).logits, ours(ids).logits[..., : opened.config.vocab_size]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
