"""Evaluations of a run's checkpoints: kept during the measurement, results in the run folder and its curves."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pretrain.system.errors import UserError
from pretrain.system.words import counted
from tools.evaluation.arguments import build_parser, check_arguments
from tools.evaluation.record import is_record, read_content, read_record
from tools.evaluation.tasks import EVALUATIONS

ROOT = Path(__file__).resolve().parents[2]
FOLDER, HELD, CURVES = "evaluations", "evaluating", "tensorboard/evaluations"


@dataclass(frozen=True)
class Asked:
    """A requested evaluation: its task, and its arguments for tools/evaluate.py."""

    task: str
    words: tuple[str, ...]


def parse(quoted: Sequence[str]) -> list[Asked]:
    """Parse the evaluations of the command line. Raises UserError for arguments that tools/evaluate.py does not
    take."""
    found = []
    for text in quoted:
        try:
            words = shlex.split(text)
            args = build_parser("", "").parse_args(["--output", "X", *words])
        except (SystemExit, ValueError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""  # a quotation mark without its other one
            raise UserError(f"{text!r}: is no evaluation{why}: quote the words of tools/evaluate.py as one") from None
        if args.model or args.checkpoint or args.check or args.scored or args.output != Path("X"):
            raise UserError(
                f"{text!r}: leave out --model, --checkpoint, --check and --scored, and --output: results lie in the run"
            )
        setattr(args, "checkpoint" if EVALUATIONS[args.task].of_checkpoints else "model", Path("X"))
        check_arguments(args)
        found.append(Asked(args.task, tuple(words)))
    tasks = [evaluation.task for evaluation in found]
    twice = next((task for task in tasks if tasks.count(task) > 1), None)
    if twice:
        raise UserError(f"--task {twice} is there twice: a checkpoint has one result of a task")
    return found


def evaluate_all(run: Path, evaluations: Sequence[Asked], steps: set[int], failed: set[tuple[int, str]]) -> None:
    """Run every evaluation on every checkpoint, newest first; failures are added to `failed`.

    What is done, failed before, or in another process' hands is passed over. UserError for a step without a checkpoint.
    """
    from pretrain.checkpoint import PREFIX, all_checkpoints

    there = {int(path.name.removeprefix(PREFIX)): path for path in all_checkpoints(run)}
    absent = {step for step in steps - set(there) if not (run / FOLDER / f"{step:08d}").is_dir()}
    if absent:
        raise UserError(f"{run}: has no checkpoint of step {min(absent)}: it has {sorted(there) or 'none'}")
    for step in sorted(there, reverse=True):
        if steps and step not in steps:
            continue
        folder = run / FOLDER / f"{step:08d}"
        open_ones = [one for one in evaluations if (step, one.task) not in failed and not is_done(folder, one.task)]
        if not open_ones:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with sole_evaluator(folder) as ours, held(there[step], run) as checkpoint:
            if not ours or checkpoint is None:
                continue
            failed |= {(step, task) for task in evaluate_one(checkpoint, folder, open_ones)}
        write_curves(run)


def there_already(run: Path, evaluations: Sequence[Asked], steps: set[int]) -> str:
    """A line on results that are not measured again, whatever the arguments; empty without any."""
    found = [
        path
        for one in evaluations
        for path in sorted((run / FOLDER).glob(f"[0-9]*/{one.task}.json"))
        if (not steps or int(path.parent.name) in steps) and is_done(path.parent, one.task)
    ]
    if not found:
        return ""
    are = "is" if len(found) == 1 else "are"
    return f"{counted(len(found), 'result')} {are} there already, by the arguments of then, as {found[-1]}: remove the file to measure it again"


def is_done(folder: Path, task: str) -> bool:
    """Whether a result is there and valid."""
    path = folder / f"{task}.json"
    return path.is_file() and not read_record(path).get("pictures", {}).get("wrong")


@contextmanager
def sole_evaluator(folder: Path) -> Iterator[bool]:
    """Lock: whether this process is the only one that evaluates a checkpoint, on this machine or where file locks
    reach."""
    with open(folder / ".evaluator.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def held(checkpoint: Path, run: Path) -> Iterator[Path | None]:
    """Hard links to all files of a checkpoint, so that they outlive its removal by training; None if it is gone.

    Where a file system has no second names, files are copied.
    """
    copy = run / HELD / checkpoint.name
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, copy, copy_function=_second_name)
    except (FileNotFoundError, shutil.Error):
        shutil.rmtree(copy, ignore_errors=True)
        print(f"{checkpoint.name}: was removed before it could be evaluated", flush=True)
        yield None
        return
    try:
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        if not any((run / HELD).iterdir()):
            (run / HELD).rmdir()


def _second_name(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def evaluate_one(checkpoint: Path, folder: Path, evaluations: Sequence[Asked]) -> list[str]:
    """Write the results of one checkpoint into `folder` -> the tasks that failed. log.txt has their output."""
    failed, export = [], checkpoint.parent / f"{checkpoint.name}-export"
    try:
        for one in evaluations:
            command = ["tools/evaluate.py", *one.words, "--output", str(folder)]
            if EVALUATIONS[one.task].of_checkpoints:
                command += ["--checkpoint", str(checkpoint)]
            elif not export.is_dir() and _run(
                folder, ["tools/convert_to_hf.py", "--checkpoint", str(checkpoint), "--output", str(export)]
            ):
                failed.append(one.task)
                continue
            else:
                command += ["--model", str(export)]
            code = _run(folder, command)
            print(f"{checkpoint.name} {one.task}: " + (f"failed, exit code {code}" if code else "done"), flush=True)
            if code:
                failed.append(one.task)
    finally:
        shutil.rmtree(export, ignore_errors=True)
    return failed


def _run(folder: Path, command: list[str]) -> int:
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        print(f"$ python {shlex.join(command)}", file=log, flush=True)
        words = [sys.executable, str(ROOT / command[0]), *command[1:]]
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def finished(run: Path) -> bool:
    """Whether the checkpoint of the run's last step is there."""
    from pretrain.checkpoint import folder_of
    from pretrain.config import load_config

    return folder_of(run, load_config(run / "config.yaml", notes=False).run.steps).is_dir()


def scores_by_step(run: Path) -> dict[int, dict[str, float]]:
    """Step -> numbers by curve name, of all results. Held-out losses have the names that training uses. Raises UserError
    for a damaged file."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted((run / FOLDER).glob("[0-9]*/*.json")):
        content = read_content(path, "remove it, and measure the step again")
        if not is_record(content):
            continue
        named = {f"{content['task']}/{name}": value for name, value in content.get("scores", {}).items()}
        found.setdefault(int(path.parent.name), {}).update(named)
    return found


def write_curves(run: Path) -> None:
    """Rewrite TensorBoard's events of all results: results come in any order of steps.

    They lie in a folder of their own below the run's, because TensorBoard follows one file of a folder at a time.
    """
    from pretrain.system.light_imports import summary_writer

    folder = run / CURVES
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    with summary_writer()(str(temporary)) as events:
        for step, values in sorted(scores_by_step(run).items()):
            for name, value in values.items():
                events.add_scalar(name, value, step)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
