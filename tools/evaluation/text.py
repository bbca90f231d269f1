"""Text benchmarks by lm-eval-harness on an exported folder: its own command, in its own environment.

lm-eval loads the folder as any user would, with `--model hf` and the folder's code. Image tokens are masked in the logits, as
in text generation: otherwise a log likelihood includes the probability that an image follows, which the base language model
does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from argparse import Namespace
from pathlib import Path

from pretrain.system.errors import RunFailed, UserError
from tools.evaluation.record import export_identity, machine, make_record, require_all

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv-eval" / "bin" / "lm_eval"
LAST_LINES = 5  # of what a failed harness said


def text(args: Namespace) -> dict:
    """Run lm-eval on `--tasks` and read its numbers -> the result. Raises UserError, or RunFailed when it fails."""
    from tools.export.folder import check_export
    from tools.generation.arguments import choose_device

    check_export(args.model)
    command = args.lm_eval or COMMAND
    if not command.is_file():
        raise UserError(f"{command} is missing: run make setup-eval, or give lm-eval's command with --lm-eval")
    device = choose_device(args.device)
    dtype = args.dtype or ("float32" if device == "cpu" else "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        model = f"pretrained={args.model},trust_remote_code=True,text_logits_only=True,dtype={dtype}"
        words = [
            str(command),
            "run",
            "--model",
            "hf",
            "--model_args",
            model,
            "--tasks",
            args.tasks,
            "--batch_size",
            str(args.batch_size),
            "--device",
            device,
            "--output_path",
            folder,
        ]
        if args.shots is not None:
            words += ["--num_fewshot", str(args.shots)]
        if args.include_path:
            words += ["--include_path", str(args.include_path)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        files = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not files:
            last = " | ".join(line.strip() for line in done.stderr.splitlines()[-LAST_LINES:])
            raise RunFailed(f"{command} ended with exit code {done.returncode}: {last[:600]}")
        found = json.loads(files[-1].read_text(encoding="utf-8"))
    counts = found["n-samples"]
    whole = [name for name, count in counts.items() if count["effective"] == count["original"]]
    require_all("lm-eval, tasks", sorted(counts), whole, "leave out limits")
    scores = {
        f"{task}/{measure.removesuffix(',none')}": value
        for task, measures in sorted(found["results"].items())
        for measure, value in sorted(measures.items())
        if isinstance(value, float)
    }
    items = sum(count["original"] for count in counts.values())
    digests = {task: found["task_hashes"].get(task, "") for task in sorted(counts)} if "task_hashes" in found else {}
    settings = {
        "tasks": args.tasks,
        "shots": {task: found["n-shot"].get(task) for task in sorted(counts)},
        "dtype": dtype,
        "batch_size": args.batch_size,
        "wording": "the tasks' own",
        "text_logits_only": True,
        "harness": f"lm-eval {found.get('lm_eval_version', '')}",
        **machine(device),
    }
    data = {"versions": {task: found["versions"].get(task) for task in sorted(counts)}, "hashes": digests}
    return make_record(
        "text", items, items, model=export_identity(args.model), data=data, settings=settings, scores=scores
    )
