"""What a run writes down: the file reads as if the run had never stopped."""

from __future__ import annotations

import json
import math
import resource

import pytest

from pretrain import metrics
from pretrain.engines import StepFigures
from pretrain.metrics import Metrics, Pace, progress_line
from pretrain.progress import Progress
from pretrain.records import Records


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, first_step: int, steps, value: float, tensorboard: bool = False) -> None:
    with Records(pytest.fail) as records:
        log = Metrics(folder, first_step, tensorboard, records)
        for step in steps:
            log.write(step, {"train/loss": value + step})
        log.close()


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = Metrics(tmp_path / "run", 0, False, Records(pytest.fail))
    for step in (1, 2):
        log.write(step, {"train/loss": step / 3})
        assert lines(tmp_path / "run")[-1] == {"step": step, "train/loss": step / 3}  # to the last bit
    log.close()


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    write(tmp_path, 0, range(6), 0.0)
    write(tmp_path, 3, range(4, 7), 100.0)
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 104),
        (5, 105),
        (6, 106),
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_starts_over_starts_an_empty_file(tmp_path):
    write(tmp_path, 0, range(6), 0.0)
    write(tmp_path, 0, range(2), 100.0)
    assert [line["train/loss"] for line in lines(tmp_path)] == [100, 101]


@pytest.mark.parametrize("cut", ['{"step": 5, "train/lo', "", "{}", "[1]", "\x00\x00"])
def test_the_cut_last_line_of_a_killed_run_is_dropped(tmp_path, cut):
    write(tmp_path, 0, range(5), 0.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(cut)
    write(tmp_path, 4, [5], 0.0)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_lines_without_a_step_that_are_dropped_are_counted(tmp_path, capsys):
    """As where another file was copied over this one; a last line that a kill has cut is no damage."""
    write(tmp_path, 0, range(5), 0.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('what\n{"step": "5"}\n{"step": 5, "tra')
    capsys.readouterr()
    write(tmp_path, 4, [5], 0.0)
    assert "metrics.jsonl: 2 lines at its end had no step, and are dropped" in capsys.readouterr().out
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 0, range(1, 6), 0.0, tensorboard=True)
    write(tmp_path, 3, range(4, 8), 100.0, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 104),
        (5, 105),
        (6, 106),
        (7, 107),
    ]


def test_pace_counts_from_the_last_line_and_foresees_from_all_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    pace = Pace(steps_left=10)
    for _ in range(2):
        now[0] += 2
        pace.add(tokens=100, waited=0.5, flops=6.0)
    assert pace.take() == (50.0, 3.0, 25.0, 16.0)  # 200 tokens in 4 s, 1 s of it waiting, 8 steps of 2 s left
    now[0] += 1
    pace.add(tokens=100, waited=0.0)
    assert pace.take() == (100.0, 0.0, 0.0, pytest.approx(5 / 3 * 7))


def test_what_is_no_step_is_not_in_the_throughput_but_in_the_time_left(monkeypatch):
    """A held-out evaluation of 96 s between two steps of 2 s."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    pace = Pace(steps_left=10)
    for apart in (96, 0):
        now[0] += 2
        pace.add(tokens=100, waited=0.0)
        with pace.apart():
            now[0] += apart
    assert (
        pace.take() == (50.0, 0.0, 0.0, 400.0) and pace.last_step == 2
    )  # 200 tokens in 4 s; 8 steps left, of 50 s in all
    now[0] += 4
    pace.add(tokens=100, waited=0.0)
    assert pace.take()[0] == 25.0


def test_the_progress_line_says_what_a_person_wants_to_know():
    values = {"train/loss": 4.5, "train/loss_image": 3.25, "train/learning_rate": 1e-3, "train/grad_norm": 0.5}
    values |= {"peak_memory_gib": 71.25, "tflops_per_gpu": 412.34}
    begin = "step    7/1200  loss 4.500 image 3.250  lr 1.0e-03  grad 0.50  12,346 tok/s  412 TFLOP/s"
    end = "  data wait 3 %  peak 71.2 GiB  3:01:02 left"
    told = {"rate": 12345.6, "waiting": 3.4, "left": 3 * 3600 + 62}
    assert progress_line(7, 1200, values, **told) == begin + end
    assert progress_line(7, 1200, {**values, "mfu_pct": 41.68}, **told) == f"{begin} (MFU 41.7 %){end}"


def test_a_line_holds_the_mean_of_all_steps_since_the_last_one():
    """With one row a step, a modality may be missing from single steps; steps weigh by their target tokens."""
    progress = Progress()
    for figures in (
        StepFigures(6.0, 0.0, 3, 0),
        StepFigures(0.0, 8.0, 0, 2),
        StepFigures(math.nan, 1.0, 5, 5),
        StepFigures(2.0, 1.0, 1, 1),
    ):
        progress.add(figures)
    assert progress.means() == {
        "loss": 17 / 7,
        "loss_text": 2.0,
        "loss_image": 3.0,
        "tokens_text": 4 / 3,
        "tokens_image": 1.0,
    }
    again = Progress.of(json.loads(json.dumps({**progress.state(), "step": 4})))
    assert again.means() == progress.means()  # a run that resumes between two lines writes what it would have written
    assert Progress.of({"step": 3, "rows": 6}).means() == {"tokens_text": 0.0, "tokens_image": 0.0}


def test_a_line_is_due_by_time_too():
    pace = Pace(steps_left=10)
    assert pace.is_due(0.0) and not pace.is_due(3600.0)


def test_a_run_that_goes_back_on_a_full_disk_has_each_step_once(tmp_path):
    """Steps 3 and 4 wait in memory when the run goes back to step 3: one of them is kept, the other is made again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Records(lambda level, line: None) as records:
        log = Metrics(tmp_path, 0, False, records)
        for step in (1, 2):
            log.write(step, {"train/loss": float(step)})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            for step in (3, 4):
                log.write(step, {"train/loss": float(step)})
            log = Metrics(tmp_path, 3, False, records)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        for step in (4, 5):
            log.write(step, {"train/loss": 100.0 + step})
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 104),
        (5, 105),
    ]
