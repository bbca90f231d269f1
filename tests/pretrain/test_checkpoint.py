"""Checkpoints are whole or not there, and damage is found, named and passed over."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import checkpoint
from pretrain.system.errors import UserError
from tests.model.tiny_training import training_config

FILES = {"model.safetensors": bytes(range(256)) * 4, "optimizer.pt": b"moments" * 50, "model.json": b"{}\n"}


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def publish(run: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.publish(run, step, write, {"step": step, "rows": 4 * step}, keep)


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in checkpoint.all_checkpoints(run)]


def damage(folder: Path, name: str, how: str) -> Path:
    path = folder / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "longer":
        path.write_bytes(content + b"x")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return path


def newest_good(run: Path) -> tuple[Path | None, list[str]]:
    warnings: list[str] = []
    return checkpoint.newest_good(run, warnings.append), warnings


def test_a_published_checkpoint_holds_what_was_written_and_its_state(tmp_path):
    folder = publish(tmp_path, 12)
    assert folder == tmp_path / "checkpoints/step_00000012"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert checkpoint.read_state(folder) == {"step": 12, "rows": 48}
    assert checkpoint.verify(folder) is None
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {*FILES, "state.json"}


def test_the_newest_ones_are_kept(tmp_path):
    for step in (2, 4, 10, 100):
        publish(tmp_path, step)
    assert steps(tmp_path) == [10, 100]
    publish(tmp_path, 102, keep=1)
    assert steps(tmp_path) == [102]


@pytest.mark.parametrize("how", ["missing", "truncated", "longer", "flipped"])
@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(tmp_path, name, how):
    good = publish(tmp_path, 2)
    bad = damage(publish(tmp_path, 4), name, how)
    found, warnings = newest_good(tmp_path)
    assert found == good
    assert len(warnings) == 1 and str(bad) in warnings[0] and "step_00000004" in warnings[0]
    assert "\n" not in warnings[0]


NO_LISTS = [None, b"", b"{}", b"[]", b"\xff", b'{"files": []}', b'{"files": {"model.json": {}}}']


@pytest.mark.parametrize("content", NO_LISTS)
def test_a_checkpoint_without_its_list_of_files_is_not_good(tmp_path, content):
    good, bad = publish(tmp_path, 2), publish(tmp_path, 4) / "manifest.json"
    bad.unlink()
    if content is not None:
        bad.write_bytes(content)
    found, warnings = newest_good(tmp_path)
    assert found == good and len(warnings) == 1 and str(bad) in warnings[0]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return publish(tmp_path_factory.mktemp("published"), 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_byte_goes_unseen(published, data):
    folder = published.with_name("flipped")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(published, folder)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    path = folder / data.draw(st.sampled_from([*FILES, "state.json", "manifest.json"]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    problem = checkpoint.verify(folder)
    if path.name == "manifest.json" and problem is None:
        assert json.loads(path.read_text())["files"] == listed  # a space, or the step: nothing that is read
    else:
        assert problem and str(folder) in problem and (path.name in problem or path.name == "manifest.json")


def test_no_good_checkpoint_is_an_error_and_none_at_all_is_a_start(tmp_path):
    assert newest_good(tmp_path) == (None, [])
    for step in (2, 4):
        damage(publish(tmp_path, step), "optimizer.pt", "flipped")
    with pytest.raises(UserError, match="none of 2 checkpoints verifies"):
        newest_good(tmp_path)


def test_what_a_kill_leaves_is_no_checkpoint_and_goes_at_the_next_one(tmp_path):
    publish(tmp_path, 2)
    for step in (3, 4):  # 3: a signal between two regular ones, so that no later one has its name
        with pytest.raises(KeyboardInterrupt):
            checkpoint.publish(tmp_path, step, stop_half_way, {}, keep=2)
    assert steps(tmp_path) == [2]
    assert (tmp_path / "checkpoints/step_00000004.partial/model.safetensors").exists()
    found, warnings = newest_good(tmp_path)
    assert found.name == "step_00000002" and not warnings
    publish(tmp_path, 4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]


def stop_half_way(folder: Path) -> None:
    write(folder)
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["_sha256", "_sync"])
def test_nothing_is_published_before_it_is_complete(tmp_path, monkeypatch, stage):
    def stop(path):
        raise KeyboardInterrupt

    publish(tmp_path, 2)
    monkeypatch.setattr(checkpoint, stage, stop)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, 4)
    assert steps(tmp_path) == [2]


def test_a_save_that_fails_leaves_the_old_checkpoints_and_no_rubbish(tmp_path):
    good = publish(tmp_path, 2)

    def full(folder: Path) -> None:
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(checkpoint.SaveFailed, match="step_.*: No space left"):
        checkpoint.publish(tmp_path, 4, full, {}, keep=2)
    assert [path for path in (tmp_path / "checkpoints").iterdir()] == [good] and checkpoint.verify(good) is None


def test_every_nth_stays(tmp_path):
    for step in range(2, 22, 2):
        checkpoint.publish(tmp_path, step, write, {}, keep=2, keep_every=6)
    assert steps(tmp_path) == [6, 12, 18, 20]


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    publish(tmp_path, 2, keep=1)
    removed = []

    def remove(path, **_):
        removed.append((path.name, checkpoint.verify(checkpoint.folder_of(tmp_path, 4))))

    monkeypatch.setattr(shutil, "rmtree", remove)
    publish(tmp_path, 4, keep=1)
    assert ("step_00000002", None) in removed  # None: the new one verified at that moment


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_checkpoint_never_pushes_out_the_good_one(tmp_path, keep):
    """A run that went back to step 2 and was stopped at step 3 must be able to go on from step 3."""
    publish(tmp_path, 2, keep=2)
    damage(publish(tmp_path, 4, keep=2), "model.json", "flipped")
    published = publish(tmp_path, 3, keep)
    assert newest_good(tmp_path) == (published, [])
    assert steps(tmp_path) == ([3] if keep == 1 else [2, 3])


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = publish(tmp_path, 4)
    damage(folder, "model.json", "missing")
    assert publish(tmp_path, 4) == folder and checkpoint.verify(folder) is None


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path):
    """It would be taken as the newest for ever, or be deleted as an old one."""
    publish(tmp_path, 2)
    moved = publish(tmp_path, 4).rename(tmp_path / "checkpoints/step_00000009")
    with pytest.raises(UserError, match=r"step_00000009 holds step 4: rename it to step_00000004"):
        newest_good(tmp_path)
    moved.rename(tmp_path / "elsewhere")
    assert checkpoint.find(tmp_path / "elsewhere") and steps(tmp_path) == [2]


def test_find_takes_a_run_or_a_checkpoint(tmp_path, capsys):
    old, new = publish(tmp_path, 2), publish(tmp_path, 4)
    assert checkpoint.find(tmp_path) == new and checkpoint.find(old) == old
    bad = damage(new, "model.json", "missing")
    assert checkpoint.find(tmp_path) == old
    assert capsys.readouterr().out.count(str(bad)) == 1
    with pytest.raises(UserError, match="model.json is missing"):
        checkpoint.find(new)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="step_00000009"):
        checkpoint.find(tmp_path / "checkpoints/step_00000009")


@pytest.mark.parametrize("content", ["", "[1]", '{"step": 3', "\x00"])
def test_a_state_that_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match="state.json is no JSON object"):
        checkpoint.read_state(tmp_path)


def test_a_model_of_a_newer_release_is_refused_by_the_setting_that_is_new(tmp_path):
    """It was left out in silence, and the weights computed something else."""
    model = training_config()
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model.to_dict()))
    assert checkpoint.read_model(tmp_path) == model
    path.write_text(json.dumps({**model.to_dict(), "windowed": 64}))
    with pytest.raises(UserError, match="windowed is no setting .* newer one"):
        checkpoint.read_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="model.json is missing"):
        checkpoint.read_model(tmp_path)


def test_a_list_of_files_without_the_state_verifies_nothing(tmp_path):
    folder = publish(tmp_path, 2)
    (folder / "manifest.json").write_text(json.dumps({"step": 2, "files": {}}))
    assert "does not list state.json" in checkpoint.verify(folder)
