"""Commands that look at datasets: they find at a URL what they find in the folder, or say that they take none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.commands import assert_refused
from tests.pretrain.tiny_run import TinyData, config_values, write_config
from tests.tokenization.store import Store, serving
from tools.export.model_card import counts_of


@pytest.fixture
def store(tiny_data: TinyData) -> Iterator[Store]:
    """A store with the datasets under their names."""
    with serving(tiny_data.train.parent) as store:
        yield store


def config_of(data: TinyData, run: Path, store: Store) -> Path:
    """The configuration of a run whose datasets are at the store."""
    values = config_values(data, run)
    values["data"] |= {
        "sources": [{"path": f"{store.url}/train"}],
        "heldout": f"{store.url}/heldout/",
        "cache": str(run.parent / "cache"),
    }
    path = run.parent / "url.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_plans_know_the_sizes(commands, tiny_data, tmp_path, store):
    local, remote = write_config(tiny_data, tmp_path / "run"), config_of(tiny_data, tmp_path / "run", store)
    words = ["--gpus", 2, "--gpu-memory", 1, "--gpus-per-node", 2]
    found = [commands.run("tools/plan_parallel.py", path, *words) for path in (local, remote)]
    assert found[0].code == 0 and found[0].out.replace(str(local), "") == found[1].out.replace(str(remote), "")
    for path in (local, remote):
        done = commands.run("slurm/plan.py", "--config", path, "--nodes", 1, "--ranks-per-node", 1)
        assert done.code == 0 and "starts from random weights" in done.out, done.err
    assert store.shards_asked() == []
    assert_refused(
        commands.run("tools/plan_parallel.py", remote, f"data.sources=[{{path: '{store.url}/nowhere'}}]", *words),
        f"{store.url}/nowhere/manifest.json",
    )


def test_held_out_rows_of_a_run_are_measured(commands, tiny_data, tmp_path, store):
    run = tmp_path / "run"
    assert commands.run("pretrain/train.py", "--config", write_config(tiny_data, run), "run.steps=2").code == 0
    results = []
    for name, config in (("folder", run / "config.yaml"), ("url", config_of(tiny_data, run, store))):
        done = commands.run(
            "tools/evaluate.py",
            "--task",
            "heldout",
            "--checkpoint",
            run,
            "--config",
            config,
            "--output",
            tmp_path / name,
        )
        assert done.code == 0, done.err
        results.append((tmp_path / name / "heldout.json").read_bytes())
    assert results[0] == results[1] and len(store.shards_asked("heldout")) > 0


def test_a_model_card_counts_documents_where_they_can_be_seen(tiny_data, store):
    assert counts_of(f"{store.url}/train") == counts_of(str(tiny_data.train)) != {}
    assert counts_of(f"{store.url}/nowhere") == {} == counts_of(str(tiny_data.train / "nowhere"))


def test_commands_that_take_folders_only_say_so(commands, tmp_path, store):
    done = commands.run("tools/measure_entropy.py", "--text", f"t={store.url}/train", "--output", tmp_path / "x.json")
    assert_refused(done, "http:/", "only a folder is read here")
