"""Settings that others switch off, and values that no run is made for: each is told in one line as a run starts."""

from __future__ import annotations

import pytest

from pretrain import config_checks
from pretrain.config import load_config
from pretrain.config_checks import without_effect
from pretrain.engines import ENGINES, EngineKind
from tests.pretrain.test_config import SHIPPED, path  # noqa: F401  (path is a fixture)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], None),
        (["zero.stage=2"], "zero: run.engine is megatron"),
        (["zero.stage=2", "run.engine=zero3"], None),
        (["optim.decay_embeddings=false", "optim.weight_decay=0"], "so nothing has any"),
        (["optim.decay_embeddings=false", "optim.weight_decay=0.1"], None),
        (["log.samples_every=3"], "log.sample_prompts is empty"),
        (["log.samples_every=3", "log.sample_prompts=[cat]"], None),
        (["model.kind=mot", "model.shallow=0", "model.deep=0"], "no layer is of it"),
        (["model.kind=mot", "model.shallow=0", "model.deep=0", "model.every=1"], None),
        (["run.threads=5000"], "run.threads 5000: "),
        (["model.max_position_embeddings=2", "data.sequence_length=64"], "rows have 64 tokens"),
        (["data.cache=/tmp/cache"], "no dataset is at a URL"),
        (["data.cache_limit=2"], "data.cache_limit 2.0: data.cache is empty"),
        (["optim.decay=constant", "optim.final_lr=1e-5"], "optim.final_lr 1e-05: optim.decay is constant"),
        (["optim.final_lr=1"], "above optim.lr"),
        (["optim.lr=0"], "optim.lr 0.0: "),
        (["optim.warmup_steps=5"], "the run has 5 steps"),
        (["log.heldout_every=5"], "log.heldout_every 5: data.heldout is empty"),
        (["log.conflict_targets=5"], "log.conflict_every is 0"),
        (["data.text_to_image=0", "data.unconditional=0.2"], "data.unconditional 0.2: data.text_to_image is 0"),
        (["resilience.hang_seconds=5"], "resilience.hang_factor is 0"),
        (["resilience.bad_steps=0", "resilience.rollbacks=5"], "resilience.rollbacks 5: resilience.bad_steps is 0"),
        (["resilience.bad_steps=0", "resilience.window=5"], "spike and bad_steps are 0"),
        (["run.engine=zero3", "zero.stage=1", "zero.init=false"], "zero.init False: zero.stage is 1"),
        (["run.engine=zero3", "zero.init=false"], None),
        (["data.sources=[{path: a, share: 1}, {path: b}]"], "data.sources[1].share 0: others have a share"),
        (["data.sources=[{path: a, share: 1, weight: 2}]"], "data.sources[0].weight 2: sources have shares"),
        (["data.sources=[{path: a}, {path: a}]"], "data.sources[1].path a: stands twice"),
        (["data.cache=/tmp/cache", "data.heldout=s3://bucket/heldout"], None),
    ],
)
def test_settings_without_effect_are_told(path, overrides, told):  # noqa: F811
    found = list(without_effect(load_config(path, overrides)))
    assert (len(found), told or "") == (int(told is not None), next((told for line in found if told in line), ""))


def test_a_new_engine_that_reads_no_zero_section_is_told_too(path, monkeypatch):  # noqa: F811
    """Only megatron was: another engine ignored the section in silence."""
    monkeypatch.setitem(ENGINES, "single", EngineKind("pretrain.engines.megatron"))
    monkeypatch.setitem(config_checks.CHOICES, "run.engine", tuple(ENGINES))
    config = load_config(path, ["run.engine=single", "zero.stage=2"])
    assert list(without_effect(config)) == [
        "zero: run.engine is single, which reads none of it: set run.engine=zero3, or leave it out"
    ]


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_every_setting_of_a_shipped_file_has_an_effect(shipped):
    assert not list(without_effect(load_config(shipped)))
