#!/usr/bin/env python
"""Make the checkpoint that a Uni-X run starts from, out of a Hugging Face folder.

Reads Qwen2, Qwen2.5 and Qwen3 language models, exports of this project, and the published Uni-X models. Tensors are read and
written one at a time. A training run takes the checkpoint with run.init_from, in any parallel layout.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import shutil

from model.errors import UserError, run_command

DTYPES = ("keep", "fp32", "bf16")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/convert_from_hf.py --hf Qwen2.5-3B --output start-3b --separate 12 6",
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to make; an earlier one is replaced")
    parser.add_argument("--separate", type=int, nargs=2, metavar=("SHALLOW", "DEEP"),
                        help="layers of --kind at the input end and at the output end (default: none)")  # fmt: skip
    parser.add_argument("--every", type=int, default=0, metavar="N",
                        help="instead of --separate: the last of each N layers is of --kind (1: all)")  # fmt: skip
    parser.add_argument("--kind", choices=("separated", "mot", "moe_hard"), default="separated",
                        help="of the layers with vision weights (default: separated, which is Uni-X)")  # fmt: skip
    parser.add_argument("--vision-init", choices=("copy", "random"), default="copy",
                        help="vision weights of those layers (default: copies of the text ones)")  # fmt: skip
    parser.add_argument("--new-rows", choices=("mean", "random"), default="mean",
                        help="rows of picture codes: mean of the text rows plus noise (default), or random")  # fmt: skip
    parser.add_argument("--codebook-size", type=int, default=8192, help="picture codes (default: 8192, Chameleon's)")
    parser.add_argument("--image-token-offset", type=int, default=0,
                        help="id of code 0 (default: the rows of the model's embedding)")  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json (default: the one of --hf)")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="of the weights written (default: as stored)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    return parser.parse_args()


def convert(arguments: argparse.Namespace) -> str:
    """Write the checkpoint -> a line that says what it is. Raises UserError for what cannot be read or does not fit."""
    import torch

    from model.config import layer_kinds
    from model.from_hf import NewWeights, starting_weights
    from model.hf_source import model_config, open_source, special_ids
    from pretrain.checkpoint import publish_alone
    from pretrain.setup import ROW_MULTIPLE
    from pretrain.sharded_files import write_whole

    source = open_source(arguments.hf)
    special = special_ids(source, arguments.tokenizer)
    kinds = None
    if arguments.separate or arguments.every:
        shallow, deep = arguments.separate or (0, 0)
        kinds = layer_kinds(source.values["num_hidden_layers"], shallow, deep, arguments.kind, arguments.every)
    config = model_config(
        source, special, kinds, arguments.codebook_size, arguments.image_token_offset, ROW_MULTIPLE
    )
    dtype = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    new = NewWeights(arguments.vision_init, arguments.new_rows, arguments.seed, dtype)
    check_output(arguments.output)
    tokenizer = (arguments.tokenizer or arguments.hf) / "tokenizer.json"

    def write(folder: Path) -> None:
        write_whole(folder, starting_weights(source, config, new))
        (folder / "model.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
        if tokenizer.is_file():
            shutil.copy(tokenizer, folder / "tokenizer.json")

    made_from = {key: str(value) for key, value in vars(arguments).items() if value is not None and key != "output"}
    publish_alone(arguments.output, write, {"step": 0, "rows": 0, "made_from": made_from})
    apart = [kind for kind in config.layer_kinds if kind != "shared"]
    kinds_apart = " and ".join(sorted(set(apart))) or "separated"
    return (
        f"{arguments.output}: {config.num_hidden_layers} layers, {len(apart)} of them {kinds_apart}, "
        f"{config.vocab_size} embedding rows, codes from {config.image_token_offset} on; start with "
        f"run.init_from={arguments.output} model.image_token_offset={config.image_token_offset}"
    )


def check_output(output: Path) -> None:
    """Raises UserError unless `output` is new, empty, or an earlier result of this command."""
    if output.is_dir() and not any(output.iterdir()):
        return
    try:
        if "made_from" in json.loads((output / "state.json").read_text(encoding="utf-8")):
            return
    except (OSError, ValueError):
        pass
    if output.exists():
        raise UserError(f"{output} exists and was not made by this command: remove it, or choose another --output")


def main() -> int:
    """Convert."""
    print(convert(parse_arguments()))
    return 0


if __name__ == "__main__":
    run_command(main)
