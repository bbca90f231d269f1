#!/usr/bin/env python
"""What people do with a model of transformers, done with an export: a line a feature, a column a version of transformers.

    python tests/export_by_hand.py --model work/demo/model --python .venv-hand4/bin/python --python .venv-hand5/bin/python

Each Python runs this file and export_features.py, which has the features, from an empty folder, with nothing of the
repository on its path and its input closed, so that a question on the terminal would be an error. Prints a table and exits
with 1 if a line failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def check(folder: Path) -> None:
    """Every check once, in this process; a line of JSON each."""
    import traceback
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from export_features import CHECKS  # beside this file

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    assert not any(Path(path, "model", "hf").is_dir() for path in sys.path if path), "the repository is on the path"
    print(json.dumps({"version": transformers.__version__}), flush=True)
    chosen = os.environ.get("CHECKS", "").split()
    for one in CHECKS:
        if chosen and one.__name__ not in chosen:
            continue
        torch.set_grad_enabled(True)
        with tempfile.TemporaryDirectory() as work:
            try:
                said, failed = one(folder, Path(work)), False
            except Exception as error:  # whatever it is, the other lines are still of interest
                traceback.print_exc()
                said, failed = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}", True
        print(json.dumps({"name": one.__name__, "said": said, "failed": failed}), flush=True)


def main() -> int:
    """Run all Pythons, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="export of tools/convert_to_hf.py")
    parser.add_argument(
        "--python", type=Path, action="append", help="Python with torch, transformers, accelerate and peft"
    )
    arguments = parser.parse_args()
    if not arguments.python:
        check(arguments.model.resolve())
        return 0
    columns = {}
    for python in arguments.python:
        with tempfile.TemporaryDirectory() as folder:
            for path in (Path(__file__), Path(__file__).with_name("export_features.py")):
                shutil.copy(path, folder)
            shutil.copy(Path(__file__).parents[1] / "docs/transformers.md", folder)
            home = {"HF_HOME": f"{folder}/home", "HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [python.absolute(), Path(__file__).name, "--model", arguments.model.resolve()],
                cwd=folder,
                env={**os.environ, **home, "PYTHONPATH": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        if done.returncode or not lines:
            sys.exit(f"error: {python} ended with code {done.returncode}")
        columns[lines[0]["version"]] = {line["name"]: line for line in lines[1:]}
    print(
        "| | "
        + " | ".join(f"transformers {version}" for version in columns)
        + " |\n"
        + "|---" * (1 + len(columns))
        + "|"
    )
    names = list(dict.fromkeys(name for lines in columns.values() for name in lines))
    for name in names:
        said = (lines[name]["said"] if name in lines else "" for lines in columns.values())
        print(f"| {name.replace('_', ' ')} | " + " | ".join(said) + " |")
    return int(any(line["failed"] for lines in columns.values() for line in lines.values()))


if __name__ == "__main__":
    sys.exit(main())
