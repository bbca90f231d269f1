"""The folder of a run: who trains in it, what it was started with, and where it goes on."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

from model.config import ModelConfig
from model.errors import UserError
from pretrain import checkpoint
from pretrain.config import TrainConfig, dump_config
from pretrain.together import Together


def hold(run: Path):
    """Lock the run folder for this process, however it ends -> the open lock file. Raises UserError when it is taken."""
    run.mkdir(parents=True, exist_ok=True)
    lock = open(run / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{run}: another process is training in this folder: wait for it, or choose another run.folder")
    return lock


def open_run(config: TrainConfig, command: list[str], run: Path, processes: int) -> None:
    """Write down the resolved configuration and the state of the code."""
    run.mkdir(parents=True, exist_ok=True)
    resolved = dump_config(config)
    (run / "config.yaml").write_text(resolved, encoding="utf-8")
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # a copy without history, or a machine without git
            return ""
        return done.stdout.rstrip()

    started = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "processes": processes,
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain").splitlines(),
        "python": sys.version.split()[0],
    }
    with open(run / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(started) + "\n")


def resume(config: TrainConfig, run: Path, engine, data, together: Together) -> tuple[int, int]:
    """Load the newest good checkpoint, or the weights that the run starts from -> (steps done, rows consumed)."""
    found = None
    if config.run.resume == "never":
        if checkpoint.all_checkpoints(run):
            raise UserError(f"{run} has checkpoints and run.resume is never: choose another run.folder, or set it to auto")
    else:
        found = checkpoint.newest_good(run, lambda line: together.say(f"warning: {line}"), together)
    if found is None:
        if config.run.init_from:
            start_from(Path(config.run.init_from), engine, data.model_config, together)
        return 0, 0
    state = checkpoint.read_state(found)
    if state["plan"] != data.train.plan.fingerprint:
        raise UserError(
            f"{found}: was trained on other rows (data, mixture, prompts, seed or row length changed): restore them, or "
            "choose another run.folder"
        )
    check_model(found, data.model_config, "resume with the configuration that made it, or choose another run.folder")
    engine.load(found, state["step"])
    together.say(f"resumed from {found} at step {state['step']}, row {state['rows']}")
    return state["step"], state["rows"]


def start_from(folder: Path, engine, model: ModelConfig, together: Together) -> None:
    """Take the weights of a checkpoint, of a run or made by tools/convert_from_hf.py. Raises UserError."""
    found = checkpoint.find(folder, together)
    check_model(found, model, "set the model section to what the weights were made with")
    engine.load_weights(found)
    together.say(f"starting from the weights of {found}")


FREE = ("initializer_range", "max_position_embeddings")  # what weights that are there do not depend on


def check_model(found: Path, model: ModelConfig, remedy: str) -> None:
    """Raises UserError when the checkpoint's model is not this one, naming the first difference."""
    there = ModelConfig.from_dict(json.loads((found / "model.json").read_text(encoding="utf-8"))).to_dict()
    for key, value in model.to_dict().items():
        if key not in FREE and there[key] != value:
            raise UserError(
                f"{found}: is a checkpoint of another model or precision ({key} {there[key]} there, {value} here): {remedy}"
            )
