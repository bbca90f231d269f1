"""The training loop with the ZeRO engine: saved by one world, engine or layout and continued by another."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pretrain import checkpoint
from pretrain.sharded_files import read_whole, stored_tensors
from tests.pretrain import checkpoint_jobs, zero3_jobs
from tests.pretrain.test_parallel_run import (
    SAVED,
    STEPS,
    assert_follows,
    assert_same_tensors,
    stopped_after_the_save,
    write_config,
)
from tests.pretrain.tiny_run import read_metrics

RESUMED = f"at step {SAVED}, row {4 * SAVED}"
ZERO = {"engine": "zero3"}
CUT = {"param_persistence_threshold": 0}


def run_of(world, data, folder, ranks: int, layout: dict | None = None, zero: dict | None = None, **changes) -> str:
    """Train into `folder` -> what rank 0 printed."""
    changes["run"] = {**ZERO, **changes.get("run", {})}
    changes["model"] = {"num_hidden_layers": 3}  # separated, shared, separated: DeepSpeed's time goes by modules
    config = write_config(data, folder, layout or {}, zero=CUT if zero is None else zero, **changes)
    rows = ["data.global_batch_size=4", "log.heldout_rows=4"]
    found = world.run(checkpoint_jobs.train_run, ranks, config=config, overrides=rows)
    assert [code for code, _, _ in found] == [0] * ranks
    return found[0][1]


@pytest.fixture(scope="module")
def reference(world, tiny_data, tmp_path_factory):
    """A run of ZeRO 3 on 2 ranks, from start to end."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert f"{STEPS} of {STEPS} steps done" in run_of(world, tiny_data, run, 2)
    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_world_goes_on_to_the_last_bit(world, tiny_data, tmp_path, reference, precision):
    whole = reference
    if precision == "bf16":
        whole = tmp_path / "whole"
        run_of(world, tiny_data, whole, 2, run={"precision": precision})
    stopped_after_the_save(whole, tmp_path / "run")
    printed = run_of(
        world, tiny_data, tmp_path / "run", 2, run={"precision": precision}, checkpoint={"async_save": True}
    )
    assert RESUMED in printed
    assert read_metrics(tmp_path / "run") == read_metrics(whole)
    ours, theirs = (checkpoint.folder_of(folder, STEPS) for folder in (tmp_path / "run", whole))
    assert_same_tensors(ours, theirs)
    assert checkpoint.read_state(ours) == checkpoint.read_state(theirs)


@pytest.mark.parametrize(
    "zero", [{"param_persistence_threshold": 200}, {"stage": 2}], ids=str
)  # matrices are cut, norms and biases whole
def test_frozen_weights_stay_and_the_run_goes_on_to_the_last_bit(world, tiny_data, tmp_path, zero):
    """They have no place in DeepSpeed's optimizer, and one in every checkpoint."""
    whole, run, options = (
        tmp_path / "whole",
        tmp_path / "run",
        {"optim": {"freeze": ["decoder.layers.*.text.*", "embed*"]}},
    )
    run_of(world, tiny_data, whole, 2, zero=zero, **options)
    stopped_after_the_save(whole, run)
    assert RESUMED in run_of(world, tiny_data, run, 2, zero=zero, **options)
    assert read_metrics(run) == read_metrics(whole)
    ours, theirs = (checkpoint.folder_of(folder, STEPS) for folder in (run, whole))
    assert_same_tensors(ours, theirs)
    names = [name for name in stored_tensors(ours) if not name.startswith("optimizer.")]
    early, late = (dict(read_whole(checkpoint.folder_of(whole, step), names)) for step in (SAVED, STEPS))
    frozen = {name for name in names if ".text." in name or name.startswith("embed")}
    assert {name for name in names if torch.equal(early[name], late[name])} == frozen
    assert not any(f"optimizer.exp_avg.{name}" in stored_tensors(ours) for name in frozen)


CONTINUATIONS = {  # ranks, engine, layout, zero section
    "4 ranks": (4, "zero3", {}, CUT),
    "1 rank": (1, "zero3", {}, CUT),
    "stage 1, offload": (2, "zero3", {}, {"stage": 1, "offload": True}),
    "stage 2 on 4": (4, "zero3", {}, {"stage": 2}),
    "tp2 x zero3, small weights whole": (4, "zero3", {"tensor": 2}, {"param_persistence_threshold": 50}),
    "megatron alone": (1, "megatron", {}, {}),
    "megatron tp2 pp2": (4, "megatron", {"tensor": 2, "pipeline": 2, "layout": "Et|ttL"}, {}),
    "megatron distributed optimizer": (2, "megatron", {"distributed_optimizer": True}, {}),
}


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_another_world_or_engine_goes_on(world, tiny_data, tmp_path, reference, name):
    """Weights, moments and rows: what a fresh optimizer or other rows would do shows in the first step's norm."""
    ranks, engine, layout, zero = CONTINUATIONS[name]
    stopped_after_the_save(reference, tmp_path / "run")
    printed = run_of(world, tiny_data, tmp_path / "run", ranks, layout, zero, run={"engine": engine})
    assert RESUMED in printed
    assert_follows(tmp_path / "run", reference)


@pytest.fixture(scope="module")
def of_megatron(world, tiny_data, tmp_path_factory):
    """A run of the megatron engine on 4 ranks."""
    run = tmp_path_factory.mktemp("megatron") / "run"
    run_of(world, tiny_data, run, 4, {"tensor": 2, "sequence": True}, zero={}, run={"engine": "megatron"})
    return run


@pytest.mark.parametrize(
    "ranks, layout, zero", [(4, {}, CUT), (2, {"tensor": 2}, CUT), (2, {}, {"stage": 1})], ids=["zero3", "tp2", "zero1"]
)
def test_zero_goes_on_from_the_other_engine_and_from_more_ranks(
    world, tiny_data, tmp_path, reference, of_megatron, ranks, layout, zero
):
    """The first half by the megatron engine on 4 ranks, the second by ZeRO."""
    run = tmp_path / "run"
    stopped_after_the_save(of_megatron, run)
    assert RESUMED in run_of(world, tiny_data, run, ranks, layout, zero)
    assert_follows(run, reference)


def test_bf16_masters_and_moments_move_between_engines(world, tiny_data, tmp_path):
    """A checkpoint that ZeRO wrote is read by the other engine on other ranks, and written again: the same numbers."""
    first, again = tmp_path / "first", tmp_path / "again"
    run_of(world, tiny_data, first, 2, run={"precision": "bf16", "steps": 4})
    found = world.run(
        zero3_jobs.load_and_save,
        4,
        config=first.with_suffix(".yaml"),
        start=checkpoint.folder_of(first, 4),
        output=again,
    )
    assert found == [4] * 4
    assert_same_tensors(checkpoint.folder_of(first, 4), again)
    assert any(name.startswith("optimizer.master.") for name in stored_tensors(again))


def test_a_run_starts_from_weights_in_pieces(world, tiny_data, tmp_path, reference):
    """Weights alone, of stage 3, whole on no rank."""
    run = tmp_path / "run"
    start = str(checkpoint.folder_of(reference, STEPS))
    printed = run_of(world, tiny_data, run, 2, run={"init_from": start, "steps": 1}, checkpoint={"every": 1})
    assert "starting from the weights of" in printed
    last = [line["heldout/loss"] for line in read_metrics(reference) if "heldout/loss" in line][-1]
    assert read_metrics(run)[0]["heldout/loss"] == pytest.approx(last, rel=5e-6)


def test_another_model_is_refused_by_name(world, tiny_data, tmp_path, reference):
    stopped_after_the_save(reference, tmp_path / "run")
    with pytest.raises(AssertionError, match="another model or precision .* bfloat16 here"):
        run_of(world, tiny_data, tmp_path / "run", 2, run={"precision": "bf16"})


def test_an_export_reads_it_without_deepspeed(world, tiny_data, tmp_path, reference, commands):
    """tools/convert_to_hf.py on one process: the weights of stage 3, put together again."""
    done = commands.run("tools/convert_to_hf.py", "--checkpoint", reference, "--output", tmp_path / "hf")
    assert done.code == 0, done.err
    (file,) = (tmp_path / "hf").glob("*.safetensors")
    exported = load_file(file)
    ((_, stored),) = read_whole(checkpoint.folder_of(reference, STEPS), ["embedding.word_embeddings.weight"])
    assert torch.equal(exported["model.embed_tokens.weight"], stored) and stored.std() > 0.01
