"""The training loop over processes: saved by one layout and continued by another, and what goes wrong on one of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from pretrain import checkpoint
from pretrain.sharded_files import read_whole, stored_tensors
from tests.parallel_world import World
from tests.pretrain import checkpoint_jobs
from tests.pretrain.tiny_run import TinyData, checkpoint_names, config_values, read_metrics

STEPS, SAVED = 5, 3
RESUMED = f"at step {SAVED}, row {2 * SAVED}"
WIDE = {"tensor": 2, "sequence": True, "pipeline": 2}
LAYOUTS = {
    "one process": (1, {}),
    "pp4": (4, {"pipeline": 4}),
    "tp2 dp2": (4, {"tensor": 2}),
    "tp2 dp2 distributed optimizer": (4, {"tensor": 2, "distributed_optimizer": True}),
}


def write_config(tiny: TinyData, folder: Path, parallel: dict, **changes: dict) -> Path:
    values = config_values(tiny, folder)
    values["run"]["steps"] = STEPS
    values["optim"]["dropout"] = 0.0  # with sequence parallelism each rank draws for its own tokens
    values["checkpoint"] = {"every": SAVED, "keep": 9}
    values["parallel"] = parallel
    for section, changed in changes.items():
        values.setdefault(section, {}).update(changed)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def trained(run: Path) -> list[dict]:
    return [line for line in read_metrics(run) if "train/loss" in line]


def assert_follows(run: Path, reference: Path) -> None:
    """The steps after the save are the reference's."""
    ours, theirs = trained(run), trained(reference)
    assert [line["step"] for line in theirs] == list(range(1, STEPS + 1)) == [line["step"] for line in ours]
    for here, there in zip(ours[SAVED:], theirs[SAVED:], strict=True):
        assert here.keys() == there.keys()
        for name, value in there.items():
            if "loss" in name or "norm" in name:
                assert here[name] == pytest.approx(value, rel=5e-6), f"step {there['step']}: {name}"
            else:
                assert here[name] == value  # rows, tokens by modality, learning rate
    heldout = [[line["heldout/loss"] for line in read_metrics(r) if "heldout/loss" in line] for r in (run, reference)]
    assert heldout[0] == pytest.approx(heldout[1], rel=5e-6)


def uninterrupted(world: World, data: TinyData, run: Path, layout: dict) -> Path:
    """The folder of a run on four ranks from start to end; `read.json` has the documents that rank 0 read."""
    config = write_config(data, run, layout)
    found = world.run(checkpoint_jobs.train_run, 4, config=config, overrides=[])
    assert [code for code, _, _ in found] == [0] * 4
    assert f"{STEPS} of {STEPS} steps done" in found[0][1] and not any(printed for _, printed, _ in found[1:])
    (run / "read.json").write_text(json.dumps(found[0][2]))
    return run


@pytest.fixture(scope="module")
def reference(world: World, tiny_data: TinyData, tmp_path_factory) -> Path:
    """2 tensor- x 2 pipeline-parallel ranks with sequence parallelism."""
    return uninterrupted(world, tiny_data, tmp_path_factory.mktemp("reference") / "run", WIDE)


def stopped_after_the_save(reference: Path, run: Path) -> None:
    shutil.copytree(reference, run)
    shutil.rmtree(checkpoint.folder_of(run, STEPS))


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    expected = dict(read_whole(theirs, stored_tensors(theirs)))
    assert stored_tensors(ours) == stored_tensors(theirs) and len(expected) > 60
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_whole(ours, expected))


@pytest.mark.parametrize("precision, distributed", [("fp32", False), ("bf16", False), ("bf16", True)])
def test_the_same_layout_goes_on_to_the_last_bit(world, tiny_data, tmp_path, reference, precision, distributed):
    layout = {"tensor": 2, "distributed_optimizer": True} if distributed else WIDE
    whole, run = reference, tmp_path / "run"
    if precision == "bf16":
        config = write_config(tiny_data, tmp_path / "whole", layout, run={"precision": precision})
        assert world.run(checkpoint_jobs.train_run, 4, config=config, overrides=[])[0][0] == 0
        whole = tmp_path / "whole"
    stopped_after_the_save(whole, run)
    config = write_config(tiny_data, run, layout, run={"precision": precision})
    found = world.run(checkpoint_jobs.train_run, 4, config=config, overrides=["checkpoint.async_save=true"])
    assert RESUMED in found[0][1]
    assert read_metrics(run) == read_metrics(whole)
    ours, theirs = (checkpoint.folder_of(folder, STEPS) for folder in (run, whole))
    assert_same_tensors(ours, theirs)
    assert checkpoint.read_state(ours) == checkpoint.read_state(theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_goes_on(world, tiny_data, tmp_path, reference, layout):
    ranks, parallel = LAYOUTS[layout]
    stopped_after_the_save(reference, tmp_path / "run")
    found = world.run(
        checkpoint_jobs.train_run, ranks, config=write_config(tiny_data, tmp_path / "run", parallel), overrides=[]
    )
    assert RESUMED in found[0][1]
    assert_follows(tmp_path / "run", reference)


@pytest.mark.parametrize("layout", ["one process", "pp4", "tp2 dp2"])
def test_the_documents_read_after_a_resume_are_those_of_the_whole_run(world, tiny_data, tmp_path, reference, layout):
    """Held-out documents, which are read at every start, then those of the rows after the save: by one reader of each row, together."""
    ranks, parallel = LAYOUTS[layout]
    config = write_config(tiny_data, tmp_path / "run", parallel)
    shutil.copytree(reference, tmp_path / "run")
    finished = world.run(checkpoint_jobs.train_run, ranks, config=config, overrides=[])
    shutil.rmtree(tmp_path / "run")
    stopped_after_the_save(reference, tmp_path / "run")
    found = world.run(checkpoint_jobs.train_run, ranks, config=config, overrides=[])
    readers = {"one process": [0], "pp4": [0], "tp2 dp2": [0, 2]}[layout]
    heldout, resumed = (Counter(sum((ranks[rank][2] for rank in readers), [])) for ranks in (finished, found))
    whole = json.loads((reference / "read.json").read_text())
    rows = (resumed - heldout).total()
    assert heldout.total() >= 2 and 2 * (STEPS - SAVED) <= rows < len(whole) - heldout.total()
    assert resumed - heldout == Counter(whole[-rows:])


def test_a_cut_optimizer_and_interleaved_stages_are_written_for_all(world, tiny_data, tmp_path):
    """Saved with the distributed optimizer on 2 x 2 ranks, continued by interleaved stages, whose save one process takes."""
    whole = uninterrupted(world, tiny_data, tmp_path / "whole", {"tensor": 2, "distributed_optimizer": True})
    run = tmp_path / "run"
    stopped_after_the_save(whole, run)
    interleaved = write_config(tiny_data, run, {"pipeline": 2, "layout": "Et|t|t|tL"}, checkpoint={"every": 2})
    found = world.run(checkpoint_jobs.train_run, 2, config=interleaved, overrides=[])
    assert RESUMED in found[0][1]
    assert_follows(run, whole)
    shutil.rmtree(checkpoint.folder_of(run, STEPS))
    found = world.run(checkpoint_jobs.train_run, 1, config=write_config(tiny_data, run, {}), overrides=[])
    assert "at step 4, row 8" in found[0][1]
    assert_follows(run, whole)


def test_who_reads_what(world, tiny_data, tmp_path, reference):
    """Of 4 pipeline stages those between the first and the last read no shard; of a tensor-parallel group one rank does."""
    for layout, ranks, readers in (({"pipeline": 4}, 4, [0, 3]), ({"tensor": 2}, 2, [0])):
        run = tmp_path / f"run-{ranks}"
        stopped_after_the_save(reference, run)
        config = write_config(tiny_data, run, layout)
        found = [
            documents for _, _, documents in world.run(checkpoint_jobs.train_run, ranks, config=config, overrides=[])
        ]
        assert all(found[rank] == found[0] and len(found[0]) > 2 * (STEPS - SAVED) for rank in readers)
        assert all(found[rank] == [] for rank in range(ranks) if rank not in readers)
        assert_follows(run, reference)


def test_a_disk_that_is_full_costs_a_warning(world, tiny_data, tmp_path, reference):
    """On one rank of two, in its own time or in a thread: the run goes on, and the next save is good."""
    for asynchronous in ("false", "true"):
        run = tmp_path / f"run-{asynchronous}"
        config = write_config(tiny_data, run, {"tensor": 2}, checkpoint={"every": 2})
        found = world.run(
            checkpoint_jobs.train_run_with_small_files,
            2,
            config=config,
            rank=1,
            saves=(2,),
            limit=4096,
            overrides=[f"checkpoint.async_save={asynchronous}"],
        )
        assert [code for code, _, _ in found] == [0, 0] and not found[1][1]
        (warning,) = [line for line in found[0][1].splitlines() if line.startswith("warning")]
        assert "checkpoint of step 4 could not be written" in warning and "the run goes on" in warning
        assert checkpoint_names(run) == ["step_00000002", "step_00000005"]
        assert checkpoint.verify(checkpoint.folder_of(run, STEPS)) is None
        assert_follows(run, reference)


def test_a_last_save_that_fails_is_a_failed_run(world, tiny_data, tmp_path, reference):
    run = tmp_path / "run"
    config = write_config(tiny_data, run, {"tensor": 2})
    with pytest.raises(AssertionError, match="RunFailed: .*the last checkpoint could not be written"):
        world.run(
            checkpoint_jobs.train_run_with_small_files, 2, config=config, rank=0, saves=(2,), limit=4096, overrides=[]
        )
    assert checkpoint_names(run) == ["step_00000003"]
    found = world.run(checkpoint_jobs.train_run, 1, config=config, overrides=["parallel.tensor=1"])
    assert RESUMED in found[0][1]
    assert_follows(run, reference)


def test_damage_is_passed_over_by_all_ranks(world, tiny_data, tmp_path, reference):
    """A flipped byte in what one rank wrote, a missing file, a half-written folder: one line each, then the one before."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for copy, damage in ((4, "flipped"), (STEPS, "manifest"), (STEPS + 1, "missing")):
        folder = checkpoint.folder_of(run, copy)
        if copy != STEPS:
            shutil.copytree(checkpoint.folder_of(run, SAVED), folder)
        file = folder / ("manifest.json" if damage == "manifest" else "__2_0.distcp")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink()
        if damage == "flipped":
            file.write_bytes(content)
    half = checkpoint.folder_of(run, 9).with_suffix(checkpoint.PARTIAL)
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    found = world.run(checkpoint_jobs.train_run, 4, config=write_config(tiny_data, run, {"tensor": 2}), overrides=[])
    warnings = [line for line in found[0][1].splitlines() if line.startswith("warning")]
    assert [name in line for name, line in zip(("step_00000006", "00000005", "00000004"), warnings, strict=True)] == [
        True
    ] * 3
    assert RESUMED in found[0][1] and not found[1][1]
    assert_follows(run, reference)
    assert checkpoint_names(run) == [
        f"step_0000000{step}" for step in (3, 4, 5)
    ]  # what was not, and later ones, are gone
    assert checkpoint.verify(checkpoint.folder_of(run, STEPS)) is None


def test_one_rank_killed_in_a_save_ends_the_others_and_costs_that_save(world, tiny_data, tmp_path, reference):
    run = tmp_path / "run"
    config = write_config(tiny_data, run, {"pipeline": 2})
    killed = World(ranks=2)
    try:
        with pytest.raises(AssertionError, match="has ended"):
            killed.run(checkpoint_jobs.train_run_and_die_in_a_save, 2, config=config, overrides=[], rank=1, save=2)
    finally:
        killed.close()
    kept, half = checkpoint_names(run)
    assert kept == "step_00000003" and half.startswith("step_00000005.0-") and half.endswith(".partial")
    found = world.run(checkpoint_jobs.train_run, 2, config=config, overrides=[])
    assert RESUMED in found[0][1] and "warning" not in found[0][1]
    assert_follows(run, reference)
    assert checkpoint_names(run) == ["step_00000003", "step_00000005"]


def test_a_damaged_shard_ends_all_ranks_and_one_tells(world, tiny_data, tmp_path):
    data, run = tmp_path / "train", tmp_path / "run"
    shutil.copytree(tiny_data.train, data)
    shard = next(data.glob("parts/*/*.mds"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    config = write_config(tiny_data, run, {"tensor": 2}, data={"sources": [{"path": str(data)}]})
    with pytest.raises(AssertionError) as caught:
        world.run(checkpoint_jobs.train_run, 2, config=config, overrides=[])
    assert str(caught.value).count("UserError: ") == 1 and str(shard) in str(caught.value)
    assert "rank 1:" in str(caught.value) and "ReportedByOtherRank: 2" in str(caught.value)


def test_a_run_starts_from_weights_of_another_layout(world, tiny_data, tmp_path, reference):
    """Weights alone: step 0, fresh moments, and the losses of those weights; another model is refused by name."""
    start = checkpoint.folder_of(reference, STEPS)
    first = {}
    for layout, ranks in (({}, 1), ({"tensor": 2, "pipeline": 2}, 4)):
        run = tmp_path / f"run-{ranks}"
        config = write_config(tiny_data, run, layout, run={"init_from": str(start), "steps": 2})
        printed = world.run(checkpoint_jobs.train_run, ranks, config=config, overrides=[])[0][1]
        assert f"starting from the weights of {start}" in printed and "2 of 2 steps" in printed
        first[ranks] = read_metrics(run)[0]["heldout/loss"]
    last = [line["heldout/loss"] for line in read_metrics(reference) if "heldout/loss" in line][-1]
    assert first[1] == pytest.approx(last, rel=5e-6) and first[4] == pytest.approx(last, rel=5e-6)
    config = write_config(tiny_data, tmp_path / "other", {}, run={"init_from": str(start)}, model={"deep": 2})
    with pytest.raises(AssertionError, match="another model or precision .layer_kinds"):
        world.run(checkpoint_jobs.train_run, 1, config=config, overrides=[])
    assert not (tmp_path / "other" / "config.yaml").exists()
