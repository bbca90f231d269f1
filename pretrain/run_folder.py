"""The run folder: lock, resume, rollback, events, and the record of starts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from model.config import ModelConfig
from pretrain import checkpoint, machine
from pretrain.config import TrainConfig, dump_config, load_config
from pretrain.config_names import with_current_names
from pretrain.coordination import Coordinator
from pretrain.fencing import Attempt, may_take_over
from pretrain.json_lines import last_objects
from pretrain.progress import Progress
from pretrain.records import Records
from pretrain.system.disk import disk_error, error_text, writing
from pretrain.system.errors import RunFailed, UserError
from tokenization.files import write_atomically

MOST_CHANGES = 6  # settings that are listed
AT_STEP_0 = ("run.init_from", "model.initializer_range")  # what a resumed run has no use for


def hold(run: Path):
    """Lock the run folder for the life of this process -> the open lock file.

    Raises UserError when it is locked, unless the environment says that this start follows the one that holds the lock:
    that one may be cut off but alive (fencing).
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / "lock", "w")  # noqa: SIM115
    except OSError as error:
        if disk_error(error):
            raise
        raise UserError(f"run.folder {run}: {error_text(error)}: choose another run.folder") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not may_take_over(run):
            raise UserError(
                f"{run}: another process is training in this folder: wait for it, or choose another run.folder"
            ) from None
    return lock


def open_run(config: TrainConfig, command: list[str], run: Path, machines: list[dict], attempt: int = 0) -> str:
    """Record the resolved configuration, the code version and the machine -> differences to the machines of the last
    start, in words.

    machines: what `machine.describe` says on each rank.
    """
    run.mkdir(parents=True, exist_ok=True)
    resolved = dump_config(config)
    write_atomically(run / "config.yaml", resolved.encode())
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # not a git checkout, or no git
            return ""
        return done.stdout.rstrip()

    started = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "processes": len(machines),
        "attempt": attempt,
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain").splitlines(),
        "python": sys.version.split()[0],
        "machines": machine.grouped(machines),
    }
    changed = machine.what_changed(last_start(run), started)
    with writing(run / "starts.jsonl"), open(run / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(started) + "\n")
    return changed


def settings_changed(run: Path, config: TrainConfig) -> str:
    """Settings that differ from those of the run's last start, in words; '' if none do or nothing is known.

    A key that the record of an earlier release lacks had its default. Call it before `open_run`, which writes the new ones down.
    """
    import yaml

    try:
        before, _ = with_current_names(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ""
    with contextlib.suppress(UserError):  # a record that is refused today is compared key by key
        before = yaml.safe_load(dump_config(load_config(run / "config.yaml", notes=False)))
    old, new = (dict(_flat(values)) for values in (before, yaml.safe_load(dump_config(config))))
    changed = [key for key in new if key in old and old[key] != new[key] and key != "run.folder"]
    changed.sort(key=lambda key: key.partition(".")[0] in ("log", "checkpoint"))  # least important last
    unread = {key: "; read at step 0 alone" for key in AT_STEP_0}
    words = [
        f"{key} {_plain(new[key])} (was {_plain(old[key])}{unread.get(key, '')})" for key in changed[:MOST_CHANGES]
    ]
    return ", ".join([*words, *([f"and {len(changed) - MOST_CHANGES} more"] if len(changed) > MOST_CHANGES else [])])


def _flat(values: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of sections; lists are values."""
    if not isinstance(values, dict):
        yield key, values
        return
    for name, value in values.items():
        yield from _flat(value, f"{key}.{name}" if key else str(name))


def _plain(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, str)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def last_start(run: Path) -> dict:
    """Last complete line of starts.jsonl, or {}."""
    try:
        lines = (run / "starts.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            return found if isinstance(found, dict) else {}
    return {}


def resume(config: TrainConfig, run: Path, engine, data, coordinator: Coordinator) -> Progress:
    """Load the newest good checkpoint, or the run's initial weights -> the progress of the run."""
    found = None
    if config.run.resume == "never":
        if checkpoint.all_checkpoints(run):
            raise UserError(
                f"{run} has checkpoints and run.resume is never: choose another run.folder, or set it to auto"
            )
    else:
        found = checkpoint.newest_good(run, coordinator.warn, coordinator)
    if found is None:
        progress = Progress()
        if last := last_objects(run / "metrics.jsonl", "step"):
            coordinator.warn(
                f"{run} has no checkpoint, and metrics.jsonl ends with step {last[0]['step']}: this start begins at step 0, and "
                "the lines of the start before are dropped"
            )
        if config.run.init_from:
            progress.skills = start_from(config, engine, data.model_config, coordinator)
        return progress
    state = checkpoint.read_state(found)
    if not isinstance(state.get("step"), int) or not {"rows", "plan"} <= set(state):
        raise UserError(
            f"{found}: is no checkpoint of a run, which knows its step and rows: take it out of {run}, and set run.init_from to "
            "it where a run is to start from its weights"
        )
    if state["plan"] != data.train.plan.fingerprint:
        raise UserError(
            f"{found}: was trained on other rows (data, mixture, prompts, seed or row length changed): restore them, or "
            "choose another run.folder"
        )
    check_model(found, data.model_config, "resume with the configuration that made it, or choose another run.folder")
    progress = Progress.of(state)
    if "skills" not in state and config.run.init_from:  # an earlier release's, which noted none of what it began from
        progress.skills = None
    engine.load(found, progress.updates)
    coordinator.say(f"resumed from {found} at step {progress.step}, row {progress.rows}")
    return progress


def note_event(records: Records, attempt: Attempt, event: str, **values) -> None:
    """Append an event to events.jsonl, on rank 0 while it owns the folder."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "attempt": attempt.number, "event": event}
    records.append(attempt.run / "events.jsonl", (json.dumps({**line, **values}) + "\n").encode())


def roll_back(
    config: TrainConfig, attempt: Attempt, records: Records, engine, coordinator: Coordinator, progress: Progress
) -> Progress:
    """Rollback: load the newest good checkpoint before the first of the bad steps; the rows since are left out.

    Raises RunFailed, on every process, when there is none or after too many rollbacks; trouble.json then says what
    happened.
    """
    run, limit, before = attempt.run, config.resilience.rollbacks, progress.bad[0]
    last = progress.went_back[-1]["to"] if progress.went_back else None
    if last is not None and before == last + 1:  # bad from its first step on
        before = last
    found, trouble = None, f"{len(progress.bad)} of the last {config.resilience.window} steps were no good"
    if len(progress.went_back) < limit:
        with contextlib.suppress(UserError):  # none verifies
            found = checkpoint.newest_good(run, coordinator.warn, coordinator, before)
        why = f"there is no checkpoint of before step {before}"
    else:
        why = f"the run went back {limit} times already"
    if found is None:
        error = RunFailed(
            f"{run}: stopped at step {progress.step}, row {progress.rows}: {trouble}, and {why}: see trouble.json there, "
            "lower optim.lr or take these rows out of the data, and go on from a checkpoint that you trust"
        )
        coordinator.first_does(lambda: stop_with_report(run, progress, error))
        raise error  # not reached: the line before raises on every process
    earlier = Progress.of(checkpoint.read_state(found))
    engine.load(found, earlier.updates)
    coordinator.warn(
        f"{trouble}: going back from step {progress.step} to {found.name}, without rows {earlier.rows} to "
        f"{progress.rows - 1}"
    )
    after = progress.gone_back(earlier)
    if coordinator.rank == 0:
        note_event(records, attempt, "went back", **after.went_back[-1], bad_steps=progress.bad)
    return after


def stop_with_report(run: Path, progress: Progress, error: RunFailed) -> None:
    """Write trouble.json, and raise the error."""
    report = {"error": str(error), **progress.state()}
    try:
        write_atomically(run / "trouble.json", (json.dumps(report, indent=1) + "\n").encode())
    except OSError as refused:
        raise RunFailed(f"{error} (it could not be written: {error_text(refused)})") from None
    raise error


def start_from(config: TrainConfig, engine, model: ModelConfig, coordinator: Coordinator) -> list[str] | None:
    """Load the weights of a checkpoint of a run or of tools/convert_from_hf.py -> its skills, None if it names none.

    Raises UserError.
    """
    found = checkpoint.find(Path(config.run.init_from), coordinator)
    there = check_model(found, model, "set the model section to what the weights were made with")
    if not config.model.max_position_embeddings and there["max_position_embeddings"] != model.max_position_embeddings:
        raise UserError(
            f"{found}: is for texts of up to {there['max_position_embeddings']} tokens: set model.max_position_embeddings to "
            "it, or to what this run is for"
        )
    engine.load_weights(found)
    coordinator.say(f"starting from the weights of {found}")
    state = checkpoint.read_state(found)
    return state.get("skills", [] if "made_from" in state else None)  # a language model teaches none of them


FREE = ("initializer_range", "max_position_embeddings")  # settings that existing weights do not depend on


def check_model(found: Path, model: ModelConfig, remedy: str) -> dict:
    """Compare model.json with this model. Raises UserError with the first difference."""
    there = checkpoint.read_model(found).to_dict()
    here = model.to_dict()
    apart = [key for key in here if key not in FREE and there[key] != here[key]]
    if apart:
        # the image token ids decide the number of rows: report the setting that was given
        if "image_token_offset" in apart:
            apart.sort(key=lambda key: key != "image_token_offset")
        differences = ", ".join(f"{key} {there[key]} there, {here[key]} here" for key in apart[:3])
        more = f", and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise UserError(f"{found}: is a checkpoint of another model or precision ({differences}{more}): {remedy}")
    return there
