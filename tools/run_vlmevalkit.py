#!/usr/bin/env python
"""Run VLMEvalKit's own runner on an exported Uni-X folder, in the environment of `make setup-eval`.

What stands after -- goes on to VLMEvalKit, as in -- --limit 50. Data that it does not know by name are read from
$LMUData/NAME.tsv, as it documents: columns index, question, A, B, C, D, answer and image.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from functools import partial

from pretrain.system.errors import RunFailed, UserError, run_command
from tokenization.files import output_folder
from tools.export.folder import check_export

MODEL = "unix"  # its name in VLMEvalKit, and in its file names


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example, with .venv-eval/bin/python:\n  python tools/run_vlmevalkit.py --model work/demo/model "
        "--data MME POPE --output work/vlmevalkit",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that tools/convert_to_hf.py wrote")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME", help="data sets, by VLMEvalKit's names")
    parser.add_argument("--output", type=Path, required=True, help="folder for answers and scores (its --work-dir)")
    parser.add_argument("--judge", default="exact_matching", help="its judge (default: %(default)s, without a network)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="of the weights (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    parser.add_argument("--chat", action="store_true", help="ask in a user's turn of a conversation")
    parser.add_argument("--raw", action="store_true", help="answers as they are, not reduced to the option they name")
    parser.add_argument("theirs", nargs="*", metavar="OPTION", help="of VLMEvalKit, after --")
    return parser.parse_args()


def failures(status: Path, names: list[str]) -> dict[str, str]:
    """Datasets that failed in VLMEvalKit, and why; it only logs that. Datasets that it skipped on purpose do not
    count."""
    try:
        found = json.loads(status.read_text(encoding="utf-8"))["datasets"]
    except (OSError, ValueError, KeyError):
        found = {}
    bad = {}
    for name in names:
        entry = found.get(name, {})
        if entry.get("error_message") or entry.get("skip_reason") == "invalid_dataset" or entry.get("status") != "done":
            bad[name] = entry.get("error_message") or entry.get("skip_reason") or "not done"
    return bad


def main() -> int:
    """Register the model, run VLMEvalKit, and check that every dataset has scores."""
    arguments = parse_arguments()
    check_export(arguments.model)
    output_folder(arguments.output)
    from pretrain.system.torchvision_compat import ensure_torchvision

    sys.path.append(
        str(Path(sys.prefix, "vlmevalkit"))
    )  # make setup-eval puts torchvision there, where lm-eval meets it not
    ensure_torchvision()
    try:
        from vlmeval import run
        from vlmeval.config import supported_VLM
    except ModuleNotFoundError as error:
        message = f"VLMEvalKit cannot be imported ({error}): run make setup-eval, then this with .venv-eval/bin/python"
        raise UserError(message) from None
    from tools.evaluation.vlmevalkit import UniX

    supported_VLM[MODEL] = partial(UniX, str(arguments.model), arguments.dtype, arguments.chat, not arguments.raw)
    sys.argv = [
        "vlmeval",
        "--model",
        MODEL,
        "--data",
        *arguments.data,
        "--work-dir",
        str(arguments.output),
        "--judge",
        arguments.judge,
        *arguments.theirs,
    ]
    run.main()
    bad = failures(arguments.output / MODEL / "status.json", arguments.data)
    if bad:
        raise RunFailed(
            f"{arguments.output}: no scores of " + "; ".join(f"{name} ({why})" for name, why in bad.items())
        )
    return 0


if __name__ == "__main__":
    run_command(main)
