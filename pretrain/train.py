#!/usr/bin/env python
"""Train a model from code shards: one process here, the same loop under torchrun or srun.

Everything that a run is lies in its folder: resolved configuration, code version, metrics, samples, checkpoints. The
same command continues an interrupted run from its newest checkpoint that verifies, with the same rows and, to the last
bit, the same losses.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import json
import signal
import subprocess
import time

from model.errors import RunFailed, UserError, run_command
from pretrain.config import TrainConfig, dump_config, load_config


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python pretrain/train.py --config pretrain/configs/demo.yaml optim.lr=1e-3 run.steps=200",
    )
    parser.add_argument("--config", required=True, help="YAML file; pretrain/configs has complete ones")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser.parse_args()


class Data:
    """What the loop reads: rows to train on, held-out rows, and what turns text into ids and back."""

    def __init__(self, config: TrainConfig):
        from pretrain import setup
        from pretrain.loader import RowDataset, Source, check_sources
        from pretrain.rows import RowSize
        from pretrain.tasks import TaskShares, tokenize_prompts
        from tokenization.shards import open_dataset

        data = config.data
        manifests = [open_dataset(Path(source.path)).manifest for source in data.sources]
        self.tokenizer = setup.load_tokenizer(data.tokenizer, manifests[0])
        self.model_config = setup.model_config(config.model, self.tokenizer, manifests[0])
        check_sources(manifests, self.model_config.vocabulary)
        self.templates = setup.prompt_templates(manifests[0])
        tokenized = tokenize_prompts(self.encode, self.model_config.vocabulary, self.templates)
        size = RowSize(data.row_length, data.row_multiple)
        shares = TaskShares(
            data.text_to_image, data.unconditional, data.train_on_prompts, data.first_text, data.code_noise
        )
        sources = [Source(Path(source.path), source.weight) for source in data.sources]
        self.train = RowDataset(sources, tokenized, shares, size, config.run.seed)
        self.heldout = []
        if data.heldout:
            heldout = [Source(Path(data.heldout))]
            check_sources([*manifests, open_dataset(heldout[0].path).manifest], self.model_config.vocabulary)
            clean = dataclasses.replace(shares, code_noise=0.0)
            dataset = RowDataset(heldout, tokenized, clean, size, seed=0)
            self.heldout = [dataset[index] for index in range(config.log.heldout_rows)]

    def encode(self, text: str) -> list[int]:
        """Text -> ids, no special tokens added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def hold(run: Path):
    """Lock the run folder for this process, however it ends -> the open lock file. Raises UserError when it is taken."""
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    lock = open(run / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{run}: another process is training in this folder: wait for it, or choose another run.folder")
    return lock


def open_run(config: TrainConfig, command: list[str], run: Path) -> None:
    """Make the run folder and write down the resolved configuration and the state of the code."""
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
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain").splitlines(),
        "python": sys.version.split()[0],
    }
    with open(run / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(started) + "\n")


def resume(config: TrainConfig, run: Path, engine, data: Data) -> tuple[int, int]:
    """Load the newest good checkpoint, if any -> (steps done, rows consumed)."""
    from pretrain import checkpoint

    if config.run.resume == "never":
        if checkpoint.all_checkpoints(run):
            raise UserError(f"{run} has checkpoints and run.resume is never: choose another run.folder, or set it to auto")
        return 0, 0
    found = checkpoint.newest_good(run, lambda line: print(f"warning: {line}", flush=True))
    if found is None:
        return 0, 0
    state = checkpoint.read_state(found)
    if state["plan"] != data.train.plan.fingerprint:
        raise UserError(
            f"{found}: was trained on other rows (data, mixture, prompts, seed or row length changed): restore them, or "
            "choose another run.folder"
        )
    engine.load(found)
    print(f"resumed from {found} at step {state['step']}, row {state['rows']}", flush=True)
    return state["step"], state["rows"]


def save(config: TrainConfig, run: Path, engine, data: Data, step: int, rows: int) -> None:
    """Publish a checkpoint that the converter can read without anything else of the run."""
    from pretrain import checkpoint

    def write(folder: Path) -> None:
        engine.save(folder)
        (folder / "model.json").write_text(json.dumps(data.model_config.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "unix_prompts.json").write_text(data.templates.to_json(), encoding="utf-8")
        (folder / "tokenizer.json").write_bytes((Path(config.data.tokenizer) / "tokenizer.json").read_bytes())

    state = {"step": step, "rows": rows, "plan": data.train.plan.fingerprint, "vq": config.data.vq}
    checkpoint.publish(run, step, write, state, config.checkpoint.keep)


class Stop:
    """Set by SIGINT and SIGTERM: the loop then finishes its step, saves and leaves."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number, _frame) -> None:
        if self.asked:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self.asked = True
        print(f"{signal.Signals(number).name}: saving after this step, then stopping", flush=True)


class Sampler:
    """Draws the configured sample prompts; loads the image tokenizer once, and only if there are prompts."""

    def __init__(self, config: TrainConfig, data: Data, run: Path):
        self.config, self.data, self.run = config, data, run
        self.captions = config.log.sample_prompts if config.log.samples_every else ()
        if self.captions:
            from tokenization.vq import load_vq

            self.vq = load_vq(config.data.vq)
            if self.vq.fingerprint != data.templates.vq_fingerprint:
                raise UserError(
                    f"data.vq {config.data.vq} is not the image tokenizer that made the shards (fingerprint "
                    f"{self.vq.fingerprint[:12]}, the shards have {data.templates.vq_fingerprint[:12]}): set data.vq to it"
                )

    def draw(self, engine, step: int) -> None:
        """Write samples/step_NNNNNNNN.png."""
        if self.captions:
            import torch

            from pretrain.samples import draw_samples, hugging_face_model, write_sheet

            model = hugging_face_model(self.data.model_config, engine.weights(), torch.float32)
            log, seed = self.config.log, self.config.run.seed
            pictures = draw_samples(model, self.data.tokenizer, self.data.templates, self.vq, self.captions,
                                    log.guidance, log.temperature, seed)  # fmt: skip
            write_sheet(self.run / "samples" / f"step_{step:08d}.png", pictures, self.captions)


def train(config: TrainConfig, command: list[str]) -> int:
    """The loop."""
    import torch

    from pretrain import runtime
    from pretrain.loader import rows_from
    from pretrain.metrics import Metrics, Pace, progress_line
    from pretrain.schedule import learning_rate

    processes = runtime.launched_processes()
    if processes > 1:
        raise UserError(f"{processes} processes were started: this loop trains in one, start it without a launcher")
    runtime.install()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    data = Data(config)
    runtime.start_distributed(config.run.seed)
    from pretrain.engines.megatron import MegatronEngine

    engine = MegatronEngine(
        data.model_config, config.optim, config.run.precision, config.data.row_length, config.run.seed
    )
    run = Path(config.run.folder)
    sampler = Sampler(config, data, run)
    lock = hold(run)
    step, rows = resume(config, run, engine, data)
    if step >= config.run.steps:
        print(f"{run} is finished: {step} of {config.run.steps} steps are done")
        return 0
    open_run(config, command, run)  # not before: a start that is refused leaves a run as it was
    stop = Stop()
    metrics = Metrics(run, step, config.log.tensorboard)
    pace = Pace(config.run.steps - step)
    loader = rows_from(data.train, rows, rank=0, ranks=1, workers=config.data.workers)
    per_step, optim, log = config.data.rows_per_step, config.optim, config.log

    def measure_heldout(at: int) -> None:
        if data.heldout:
            values = {f"heldout/{name}": value for name, value in engine.evaluate(data.heldout).means().items()}
            metrics.write(at, values)
            print(f"held-out after {at} steps: " + ", ".join(f"{k[8:]} {v:.3f}" for k, v in values.items()), flush=True)

    last, saved = False, step
    if step == 0:
        measure_heldout(0)
    while step < config.run.steps and not stop.asked:
        waiting = time.perf_counter()
        try:
            batch = [next(loader) for _ in range(per_step)]
        except (RuntimeError, OSError, EOFError):
            if stop.asked:
                break  # the signal went to the whole job, loader workers included
            raise
        waited = time.perf_counter() - waiting
        lr = learning_rate(step, peak=optim.lr, final=optim.final_lr, warmup=optim.warmup_steps,
                           steps=config.run.steps, decay=optim.decay)  # fmt: skip
        try:
            figures = engine.train_step(batch, lr)
        except FloatingPointError as error:
            raise RunFailed(f"{run}: step {step + 1} of {config.run.steps}: {error}") from None
        step, rows = step + 1, rows + per_step
        last = step == config.run.steps
        pace.add(per_step * config.data.row_length, waited)
        if step % log.every == 0 or last:
            rate, data_wait, left = pace.take()
            values = {f"train/{name}": value for name, value in figures.means().items()}
            values |= {
                "train/tokens_text": figures.tokens_text,
                "train/tokens_image": figures.tokens_image,
                "train/grad_norm": figures.grad_norm,
                "train/learning_rate": lr,
                "train/rows": rows,
                "tok_per_sec_per_gpu": rate,
                "data_wait_pct": data_wait,
            }
            metrics.write(step, values)
            print(progress_line(step, config.run.steps, values, rate, data_wait, left), flush=True)
        if last or (log.heldout_every and step % log.heldout_every == 0):
            measure_heldout(step)
        if log.samples_every and (step % log.samples_every == 0 or last):
            sampler.draw(engine, step)
        if step % config.checkpoint.every == 0 or last:
            save(config, run, engine, data, step, rows)  # last: what is in a checkpoint's past has been written down
            saved = step
    if saved != step:
        save(config, run, engine, data, step, rows)
    metrics.close()
    lock.close()
    print(f"{run}: {step} of {config.run.steps} steps done" + ("" if last else "; the same command goes on from here"))
    return 0 if last else 130


def main() -> int:
    """Parse, then train."""
    arguments = parse_arguments()
    return train(load_config(arguments.config, arguments.overrides), sys.argv)


if __name__ == "__main__":
    run_command(main)
