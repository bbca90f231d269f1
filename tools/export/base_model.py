"""Initial checkpoint of a run, from a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from model.layer_kinds import SEPARATED, SHARED
from pretrain.system.errors import UserError

DTYPES = ("keep", "fp32", "bf16")
MOST_ROWS = 10**8  # of an embedding: more is a slip of the keyboard, which would take all memory


def convert(arguments: argparse.Namespace) -> str:
    """Write the checkpoint -> a one-line description. Raises UserError for input that cannot be read or does not
    fit."""
    if not (arguments.hf / "config.json").is_file():  # before the seconds that it takes to import torch
        raise UserError(
            f"{arguments.hf / 'config.json'}: cannot be read (FileNotFoundError): is this a Hugging Face folder?"
        )
    import torch

    from model.config import layer_kinds
    from model.hf_source import model_config, open_source, open_tokenizer, special_ids
    from model.starting_weights import NewWeights, starting_weights
    from pretrain.checkpoint import publish_alone
    from pretrain.model_section import section_yaml
    from pretrain.setup import ROW_MULTIPLE
    from pretrain.sharded_files import write_whole
    from tools.export.base_check import SMALL, largest_difference, stored_bytes

    source = open_source(arguments.hf)
    opened = open_tokenizer(source, arguments.tokenizer, arguments.add_tokens)
    special = special_ids(source, opened[0] if opened else None)
    kinds = None
    check_options(arguments, source.values if source.is_uni_x else None)
    if arguments.separate or arguments.every:
        shallow, deep = arguments.separate or (0, 0)
        kinds = layer_kinds(source.values["num_hidden_layers"], shallow, deep, arguments.kind, arguments.every)
    text_ids = opened[0].get_vocab_size() if opened else 0
    config = model_config(
        source, special, kinds, arguments.codebook_size, arguments.image_token_offset, ROW_MULTIPLE, text_ids
    )
    dtype = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    new = NewWeights(arguments.vision_init, arguments.new_rows, arguments.seed, dtype)
    check_output(arguments.output)
    verify = arguments.verify
    if verify is None:
        verify = not source.published and stored_bytes(source) <= SMALL
    elif verify and source.published:
        raise UserError(f"{source.folder}: transformers has no class for a published Uni-X model: leave --verify out")
    not_kept = unkept(arguments.hf)
    checked = ["logits were not compared with the base's (--verify does)"]

    def write(folder: Path) -> None:
        write_whole(folder, starting_weights(source, config, new))
        (folder / "model.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "model.yaml").write_text(section_yaml(config, opened[0] if opened else None), encoding="utf-8")
        if opened:
            (folder / "tokenizer.json").write_bytes(opened[1])
        if verify:
            difference, largest = largest_difference(source, folder, config)
            checked[0] = f"logits differ from the base's by at most {difference:.2g} (the largest is {largest:.3g})"

    made_from = {key: str(value) for key, value in vars(arguments).items() if value is not None and key != "output"}
    skills = source.values.get("skills") if source.is_uni_x else []  # of a Uni-X folder that says nothing: not known
    known = {} if skills is None else {"skills": skills}
    publish_alone(arguments.output, write, {"step": 0, "rows": 0, "made_from": made_from, **known})
    apart = [kind for kind in config.layer_kinds if kind != SHARED]
    kinds_apart = " and ".join(sorted(set(apart))) or SEPARATED
    return (
        f"{arguments.output}: {config.num_hidden_layers} layers, {len(apart)} of them {kinds_apart}, "
        f"{config.vocab_size} embedding rows, codes from {config.image_token_offset} on; start with "
        f"run.init_from={arguments.output} and the model section in {arguments.output}/model.yaml\n{checked[0]}{not_kept}"
    )


def check_options(arguments: argparse.Namespace, own: dict | None) -> None:
    """Raises UserError for an option without effect, and for a codebook of size 0; own: values of a Uni-X folder."""
    if arguments.codebook_size < 1:
        raise UserError(f"--codebook-size {arguments.codebook_size}: a number above 0 is needed, as 8192")
    for name in ("codebook_size", "image_token_offset"):
        if (getattr(arguments, name) or 0) > MOST_ROWS:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at most {MOST_ROWS:,}")
    apart = any(arguments.separate or ()) or arguments.every
    of_vision = (
        () if apart else (("--kind", arguments.kind, "separated"), ("--vision-init", arguments.vision_init, "copy"))
    )
    for option, value, default in of_vision:
        if value != default:
            raise UserError(f"{option} {value}: is of layers that --separate or --every names: add one")
    if own is None:
        return
    size, offset = arguments.codebook_size, arguments.image_token_offset
    of_codes = (
        ("--new-rows", arguments.new_rows, ("mean",)),
        ("--codebook-size", size, (8192, own.get("codebook_size"), own.get("vision_vocab_size"))),
        ("--image-token-offset", offset, (0, own.get("image_token_offset"), own.get("real_text_vocab_size"))),
    )
    for option, value, harmless in of_codes:
        if value not in harmless:
            raise UserError(f"{option} {value}: {arguments.hf} has picture codes of its own: leave it out")


def unkept(folder: Path) -> str:
    """Line on settings of the folder's generation_config.json that are not kept; '' if there are none. Raises
    UserError."""
    from model.hf_keys import unkept_generation
    from model.hf_source import read_json

    path = folder / "generation_config.json"
    found = unkept_generation(read_json(path)) if path.is_file() else {}
    words = ", ".join(f"{key} {value}" for key, value in found.items())
    return f"\n{path}: not kept: {words}; exports sample as they are asked to" if found else ""


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
