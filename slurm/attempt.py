#!/usr/bin/env python
"""Attempts of a run: numbers them (fencing tokens), records how each ended, and decides whether to requeue.
slurm/job.sh calls it.

    attempt.py begin RUN ...   -> the number of the attempt that begins, larger than any before
    attempt.py end RUN ...     -> done, refused, requeue, restart or stop

Every end is a line of RUN/restarts.jsonl: when, where, how many steps, why it ended, what was decided.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import re
import time

from pretrain.json_lines import last_objects
from pretrain.system.disk import REMEDIES
from pretrain.system.errors import UserError, run_command

DONE, REFUSED, REQUEUE, RESTART, STOP = "done", "refused", "requeue", "restart", "stop"
WORDS = {0: "done", 1: "failed", 2: "wrong configuration or input", 75: "hung", 130: "saved and left after a signal"}
SIGNALS = {
    129: "SIGHUP",
    134: "SIGABRT",
    135: "SIGBUS",
    136: "SIGFPE",
    137: "SIGKILL",
    138: "SIGUSR1",
    139: "SIGSEGV",
    143: "SIGTERM",
}
RANK_ENDED = re.compile(r"error: (\S+): tasks? ([\d,-]+): (.+)")  # srun's line about a failed rank
AN_ERROR = re.compile(r"^(error: .+|(?:\w+\.)*\w*(?:Error|Exception|RunFailed|Interrupt)\b: .+|.*watchdog.*no step.*)$")
FOLLOWS = re.compile(
    r"closed by peer|Connection (reset|refused)|Broken pipe|gloo|NCCL|Terminated"
)  # another rank's end
TAIL = 16_384  # bytes at the end of a log in which an error is looked for


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python slurm/attempt.py begin work/demo/run --nodes node1,node2 --ranks 4",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    begin = actions.add_parser("begin", help="number an attempt")
    begin.add_argument("run", type=Path, help="run folder")
    begin.add_argument("--nodes", default="", help="names of its nodes, comma-separated")
    begin.add_argument("--ranks", type=int, default=1, help="processes (default: %(default)s)")
    end = actions.add_parser("end", help="write down how it ended, and decide")
    end.add_argument("run", type=Path, help="run folder")
    end.add_argument("--code", type=int, required=True, help="exit code of the training step")
    end.add_argument("--attempt", type=int, help="its number (default: that of the last one that began)")
    end.add_argument("--reason", default="", help="why it ended, where the batch script knows")
    end.add_argument("--signal", choices=("", "warned", "cancelled"), default="", help="what the batch script was told")
    end.add_argument("--limit", type=int, default=3, help="attempts in a row without progress (default: %(default)s)")
    return parser.parse_args()


def newest_checkpoint(run: Path) -> int:
    """Step of the newest published checkpoint, 0 without any."""
    try:
        names = os.listdir(run / "checkpoints")  # without building paths: there may be ten thousand
    except OSError:
        return 0
    steps = [name[5:] for name in names if name.startswith("step_") and name[5:].isdecimal()]
    digits = max(map(len, steps), default=0)  # they are padded: of equally long ones the last is the largest
    return int(max((step for step in steps if len(step) == digits), default=0))


def last_step(run: Path) -> int:
    """Last step in metrics.jsonl."""
    found = last_objects(run / "metrics.jsonl", "step")
    return int(found[0]["step"]) if found else 0


def resumed_step(logs: Path) -> int | None:
    """Step that an attempt resumed from; not the newest checkpoint's when that one is damaged."""
    try:
        text = (logs / "rank_0000.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^resumed from .* at step (\d+), row", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def recomputed(attempts: list[dict]) -> list[int]:
    """For each attempt that ended: how many of its steps the next training attempt repeated."""
    counts = []
    for number, entry in enumerate(attempts):
        resumed = (after["resumed_step"] for after in attempts[number + 1 :] if after.get("resumed_step") is not None)
        counts.append(max(0, entry["to_step"] - next(resumed, entry["saved_step"])))
    return counts


def ended(run: Path) -> list[dict]:
    """Lines of restarts.jsonl, without a truncated last line."""
    try:
        lines = (run / "restarts.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def begin(run: Path, nodes: list[str], ranks: int) -> int:
    """Number an attempt and record what it starts with; an earlier one without a recorded end is closed first."""
    current = run / "attempt.json"
    try:
        last = json.loads(current.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = {"attempt": max((entry["attempt"] for entry in ended(run)), default=0)}
    started = {
        "attempt": last["attempt"] + 1,
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "nodes": nodes,
        "ranks": ranks,
        "began": time.time(),
        "from_step": newest_checkpoint(run),
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
        if last["attempt"] and all(entry["attempt"] != last["attempt"] for entry in ended(run)):
            write_end(
                run, last, None, "ended without a word: its first node was lost, or Slurm killed the job", REQUEUE
            )
        temporary = current.with_suffix(".partial")
        temporary.write_text(json.dumps(started) + "\n", encoding="utf-8")
        os.replace(temporary, current)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "set run.folder to a folder of yours")
        raise UserError(f"{run}: cannot be written ({error.strerror}): {remedy}") from None
    return started["attempt"]


def end(run: Path, code: int, reason: str, signal: str, limit: int, number: int | None = None) -> tuple[str, str]:
    """Record how the current attempt ended -> (the decision, a line for the job's log).

    number: of the attempt that ended; where another one has begun since, its end is not noted: that one still runs.
    """
    started = json.loads((run / "attempt.json").read_text(encoding="utf-8"))
    job = os.environ.get("SLURM_JOB_ID", "")
    if number is not None and (number, job) != (started["attempt"], started["job"]):
        return STOP, (
            f"attempt {number} of job {job} ended, and attempt {started['attempt']} of job {started['job']} owns {run}: "
            "this job stops; two jobs need a run.folder each"
        )
    logs = logs_of(run, started["attempt"])
    code = code_of_the_first(code, logs / "srun.log")
    if code == 0:
        code = code_of_zero(logs)
    reason = reason or explain(code, signal, logs)
    decision = decide(code, signal)
    fruitless = 1 + fruitless_before(run) if newest_checkpoint(run) <= started["from_step"] else 0
    if decision in (REQUEUE, RESTART) and fruitless >= limit:
        decision = STOP
        reason += f"; the {fruitless} attempts up to this one made no checkpoint, so the job gives up"
    try:
        entry = write_end(run, started, code, reason, decision)
    except OSError as error:  # not needed: the next attempt records that this one ended
        entry = vars(error)["entry"]
        reason += f" ({run / 'restarts.jsonl'} cannot be written, {error.strerror}: {REMEDIES.get(error.errno or 0, 'look at it')})"
    where = f"attempt {entry['attempt']} ended at step {entry['to_step']} (newest checkpoint: {entry['saved_step']})"
    return decision, f"{where}: {reason}. Next: {decision}"


def logs_of(run: Path, attempt: int) -> Path:
    """Path pattern of srun's logs of an attempt, one file per rank."""
    return run / "logs" / f"attempt_{attempt:04d}"


def decide(code: int, signal: str) -> str:
    """Decision after an exit code, without the limit on fruitless attempts."""
    if code == 0:
        return DONE
    if code == 2:
        return REFUSED
    if signal == "cancelled":
        return STOP
    return REQUEUE if signal == "warned" or code == 130 else RESTART


def fruitless_before(run: Path) -> int:
    """Consecutive attempts, up to the last one, that ended without a newer checkpoint."""
    count = 0
    for entry in reversed(ended(run)):
        if entry["saved_step"] > entry["from_step"] or entry["decision"] == STOP:
            break
        count += 1
    return count


def write_end(run: Path, started: dict, code: int | None, reason: str, decision: str) -> dict:
    """Append a line to restarts.jsonl -> what it says. Raises OSError with the line's values in `entry` if it
    cannot."""
    saved, last = newest_checkpoint(run), last_step(run)
    entry = {
        **started,
        "ended": time.time(),
        "code": code,
        "reason": reason,
        "resumed_step": resumed_step(logs_of(run, started["attempt"])),
        "to_step": max(last, saved),
        "saved_step": saved,
        "decision": decision,
    }
    entry.setdefault("from_step", saved)
    try:
        with open(run / "restarts.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        vars(error)["entry"] = entry
        raise
    return entry


def explain(code: int, signal: str, logs: Path) -> str:
    """Why an attempt ended, in a line: srun's message, the rank that ended first, and its error."""
    if signal == "warned":
        return "time limit or pre-emption is near" + ("" if code == 130 else f"; the ranks ended with code {code}")
    if signal == "cancelled":
        return "cancelled, or pre-empted without notice"
    word = WORDS.get(code) or (f"a rank was ended by {SIGNALS[code]}" if code in SIGNALS else f"exit code {code}")
    if code in (0, 130):
        return word
    parts = [part for part in (who_ended(logs / "srun.log"), first_error(logs)) if part]
    return word + "".join(f"; {part}" for part in parts)


def code_of_the_first(code: int, path: Path) -> int:
    """Exit code of the rank that ended first, where srun's own code is only that of ranks that it then killed."""
    if code < 128 or not path.exists():
        return code
    found = RANK_ENDED.search(path.read_text(encoding="utf-8", errors="replace"))
    own = re.fullmatch(r"Exited with exit code (\d+)", found.group(3).strip()) if found else None
    return int(own.group(1)) if own else code


def code_of_zero(logs: Path) -> int:
    """Exit code where srun's own is 0, by rank 0's last words: 0 if the run is done, 130 if it saved and left before the
    last step, as after a step is cancelled on a busy node, and 1 if it was never started."""
    try:
        text = (logs / "rank_0000.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 1
    if "; the same command goes on from here" in text:
        return 130
    return 0 if re.search(r"\d+ of \d+ steps (?:are )?done", text) else 1


def who_ended(path: Path) -> str:
    """srun's message on the first rank that was killed, as in "rank 3 on node2: Killed"."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lost = re.search(r"error: (?:Node failure on|Aborting.*?on) (\S+)", text)
    if lost:
        return f"node {lost.group(1).rstrip('.')} was lost"
    failed = re.search(r"error: (.*launch failed.*)", text)
    if failed:
        return failed.group(1)
    found = RANK_ENDED.search(text)
    return f"rank {found.group(2)} on {found.group(1)}: {found.group(3)}" if found else ""


def first_error(logs: Path) -> str:
    """The error that some rank's log ends with; one about another rank's end only if there is no other."""
    causes: list[str] = []
    consequences: list[str] = []
    for path in sorted(logs.glob("rank_*.log")):
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        errors = [line.strip() for line in lines if AN_ERROR.match(line.strip())]
        if errors:
            kind = consequences if FOLLOWS.search(errors[-1]) else causes
            kind.append(f"{path.stem}: {errors[-1][:300]}")
    return next(iter(causes + consequences), "")


def main() -> int:
    """Run a subcommand; output for the batch script goes to standard output, text for people to standard error."""
    arguments = parse_arguments()
    if arguments.action == "begin":
        print(begin(arguments.run, [name for name in arguments.nodes.split(",") if name], arguments.ranks))
        return 0
    code, reason, signal = arguments.code, arguments.reason, arguments.signal
    decision, line = end(arguments.run, code, reason, signal, arguments.limit, arguments.attempt)
    print(line, file=sys.stderr)
    print(decision)
    return 0


if __name__ == "__main__":
    run_command(main)
