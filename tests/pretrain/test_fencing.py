"""One attempt owns a run: an older one, alive behind a broken network, writes nothing there any more."""

from __future__ import annotations

import json

import pytest

from pretrain import checkpoint, fencing
from pretrain.fencing import TakenOver, claim
from pretrain.system.errors import UserError
from tests.pretrain.tiny_run import checkpoint_names, read_metrics, write_config


def as_attempt(monkeypatch, number: int | str) -> None:
    monkeypatch.setenv(fencing.VARIABLE, str(number))


def write(folder) -> None:
    (folder / "__0_0.distcp").write_bytes(b"tensors")


def publish(owner: fencing.Attempt, step: int, action=write) -> None:
    checkpoint.publish(owner.run, step, action, {"step": step}, keep=9, attempt=owner)


def test_the_larger_number_owns_and_of_equal_ones_the_last(monkeypatch, tmp_path):
    by_hand, again = claim(tmp_path), claim(tmp_path)
    again.check()
    with pytest.raises(TakenOver, match="taken over from attempt 0"):
        by_hand.check()
    as_attempt(monkeypatch, 3)
    third = claim(tmp_path)
    as_attempt(monkeypatch, 2)
    with pytest.raises(TakenOver, match="started too late"):
        claim(tmp_path)
    third.check()
    monkeypatch.delenv(fencing.VARIABLE)
    assert claim(tmp_path).number == 3  # by hand: in the place of the one that was there
    for number in ("two", "²", "9" * 5000):
        as_attempt(monkeypatch, number)
        with pytest.raises(UserError, match=f"UNIX_RUN_ATTEMPT is '{number[:3]}"):
            claim(tmp_path)
    monkeypatch.delenv(fencing.VARIABLE)
    (tmp_path / "owner.json").write_text('{"number": Infinity, "owner": "an editor"}')
    assert claim(tmp_path).number == 0  # a file that cannot be read is no evidence


@pytest.mark.parametrize("moment", ["before", "while it writes", "after its last look"])
def test_an_older_attempt_publishes_nothing(monkeypatch, tmp_path, moment):
    as_attempt(monkeypatch, 1)
    old = claim(tmp_path)
    publish(old, 2)
    as_attempt(monkeypatch, 2)
    action, new = write, None

    def take_over(*_) -> None:
        nonlocal new
        new = claim(tmp_path)
        publish(new, 4)

    if moment == "before":
        take_over()
    elif moment == "while it writes":

        def action(folder) -> None:
            write(folder)
            take_over()
    else:
        rename = checkpoint._publish

        def first_the_other(temporary, final) -> None:
            monkeypatch.setattr(checkpoint, "_publish", rename)
            take_over()
            rename(temporary, final)

        monkeypatch.setattr(checkpoint, "_publish", first_the_other)
    with pytest.raises(checkpoint.SaveFailed):
        publish(old, 4, action)
    assert checkpoint_names(tmp_path) == ["step_00000002", "step_00000004"]
    assert checkpoint.verify(checkpoint.folder_of(tmp_path, 4)) is None
    publish(new, 6)
    assert checkpoint_names(tmp_path)[-1] == "step_00000006"


def test_a_newer_attempt_takes_a_running_run_over(commands, tiny_data, tmp_path):
    """The first keeps the lock and is alive; the second starts, and the first ends without another line or checkpoint."""
    config, run = write_config(tiny_data, tmp_path / "run"), tmp_path / "run"
    hook = "tests.pretrain.kill_points", "as_attempt"
    arguments = "pretrain/train.py", "--config", config, "optim.decay=constant", "checkpoint.keep=99"
    old = commands.start(*arguments, "run.steps=1000000", "checkpoint.every=5", hook=(*hook, 1))
    old.wait_until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 12)
    seen = json.loads((run / "metrics.jsonl").read_text().splitlines()[10])["step"]
    new = commands.start(*arguments, "run.steps=60", "checkpoint.every=1000", hook=(*hook, 2))
    first, second = old.wait(), new.wait()
    if second.code == 0 and "is finished" in second.out:  # the first one was quicker than expected
        pytest.fail("the first attempt had done 60 steps before the second came: make run.steps larger")
    assert first.code == 1 and "attempt 2" in first.err and "has taken over from attempt 1" in first.err, first.err
    assert second.code == 0 and "resumed from" in second.out, second.err
    lines = [line["step"] for line in read_metrics(run) if "train/loss" in line]
    assert lines == list(range(1, 61)) and seen < 60
    later = [int(name.removeprefix("step_")) for name in checkpoint_names(run)]
    assert later[-1] == 60 and all(step % 5 == 0 for step in later)
    late = commands.run(*arguments, "run.steps=1000000", hook=(*hook, 1))
    assert late.code == 1 and "started too late" in late.err
