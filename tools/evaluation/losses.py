"""Held-out losses by modality, and retrieval among pairs of texts and images, of an export or of a checkpoint.

The rows are training's own: the same draws of tasks and wordings from the same seed, so that the loss of a checkpoint
is the one that its run wrote down, and that of an export differs by rounding only.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from tools.evaluation.record import (
    check_finite,
    checkpoint_identity,
    export_identity,
    machine,
    make_record,
    require_all,
)

AT_ONCE = 2**26  # elements of [tokens, vocabulary] that exist at a time: 256 MiB in float32


def heldout(args: Namespace) -> dict:
    """Mean loss of each modality's targets, in nats per token, on held-out rows -> the result. Raises UserError."""
    from pretrain import runtime

    runtime.install()  # before what imports megatron-core
    from pretrain.data import cache_of, heldout_dataset
    from pretrain.engines import StepFigures
    from pretrain.engines.common import loss_sums
    from pretrain.tasks import tokenize_prompts
    from tools.runs.checkpoint_model import check_shards

    opened, losses, about = open_for_losses(args)
    data, rows = row_settings(args, opened.folder)
    check_shards(opened, [data.heldout], cache_of(data))
    tokenized = tokenize_prompts(opened.encode, opened.vocabulary, opened.templates, opened.markup)
    dataset = heldout_dataset(data, tokenized)
    numbers = list(numbers_of(dataset.plan, rows))
    if numbers and (again := dataset.plan.epoch_of(numbers[-1])):
        print(f"{rows:,} rows: documents are measured up to {again + 1} times, with other draws", file=sys.stderr)
    sums, done = [0.0] * 4, 0
    for number in numbers:
        row = dataset[number]
        of_row = loss_sums(losses(row), row.labels[row.targets], opened.vocabulary).tolist()
        sums = [total + value for total, value in zip(sums, of_row, strict=True)]
        done += 1
    figures = StepFigures(sums[0], sums[1], int(sums[2]), int(sums[3]))
    check_finite(str(args.model or args.checkpoint), figures.means())
    scores = {**figures.means(), "tokens_text": figures.tokens_text, "tokens_image": figures.tokens_image}
    settings = {
        "rows": len(numbers),
        "sequence_length": data.sequence_length,
        "row_multiple": data.row_multiple,
        "text_to_image": data.text_to_image,
        "unconditional": data.unconditional,
        "first_text": data.first_text,
        "train_on_prompts": data.train_on_prompts,
        "seed": 0,
        "wording": "every wording of the model, drawn",
        **about.pop("settings"),
    }
    rows = {**shards(data.heldout), "rows": dataset.plan.fingerprint}  # other rows of the same shards have another loss
    return make_record("heldout", len(numbers), done, model=about, data=rows, settings=settings, scores=scores)


def retrieval(args: Namespace) -> dict:
    """Text-to-image and image-to-text retrieval among `--pairs` -> the result. Raises UserError."""
    from pretrain.tasks import tokenize_prompts
    from tokenization.shards import open_dataset
    from tools.runs.checkpoint_model import check_shards
    from tools.study.scores import both_directions

    opened, losses, about = open_for_losses(args)
    check_shards(opened, [args.data])
    dataset, what = open_dataset(args.data), f"{args.data}, different pairs of a text and a picture"
    pairs = [f"pair {number + 1}" for number in range(args.pairs)]
    require_all(what, pairs, pairs[: len(dataset)], "lower --pairs")  # before work that grows with their square
    tokenized = tokenize_prompts(opened.encode, opened.vocabulary, opened.templates, opened.markup)

    def finite(row):
        values = losses(row)
        check_finite(str(args.model or args.checkpoint), {"loss": float(values.sum())})
        return values

    found = both_directions(finite, tokenized, dataset, args.pairs, args.sequence_length or 1024)
    count = found["text_to_picture"]["candidates"]
    require_all(what, pairs, pairs[:count], "lower --pairs")
    settings = {
        "pairs": args.pairs,
        "sequence_length": args.sequence_length or 1024,
        "chance": 1 / args.pairs,
        "seed": 0,
        "wording": [opened.templates.text_to_image[0], opened.templates.image_to_text[0]],
        **about.pop("settings"),
    }
    scores = {f"{way}/{name}": found[way][name] for way in found for name in ("accuracy", "rank")}
    return make_record(
        "retrieval", args.pairs, count, model=about, data=shards(args.data), settings=settings, scores=scores
    )


def open_for_losses(args: Namespace) -> tuple[Any, Callable, dict]:
    """Open the model -> (its tokenizer and prompts, its loss function of a row's targets, its identity). Raises
    UserError."""
    from tools.generation.arguments import choose_device

    if args.checkpoint:
        from pretrain import runtime
        from tools.study.scores import target_losses

        runtime.install()
        from tools.runs.checkpoint_model import open_checkpoint

        opened = open_checkpoint(args.checkpoint)
        weight = next(opened.model.parameters())
        about = checkpoint_identity(opened.folder) | {"settings": settings_of(weight)}
        return opened, target_losses(opened), about
    from tools.export.folder import check_export, open_export

    check_export(args.model)
    export = open_export(args.model, choose_device(args.device), args.dtype)
    about = export_identity(args.model) | {"settings": settings_of(export.model.lm_head.weight)}
    return export, export_losses(export), about


def settings_of(weight) -> dict:
    """Dtype and machine of a model's weight."""
    return {"dtype": str(weight.dtype).removeprefix("torch."), **machine(weight.device.type)}


def export_losses(export) -> Callable:
    """A row -> losses [targets] of its target tokens, by the Hugging Face classes, one document at a time.

    Documents of one length go through the model together. Padding, and documents without a target, do not.
    """
    import torch

    model = export.model
    size = max(1, AT_ONCE // model.lm_head.weight.shape[0])

    def losses_of(ids, labels):
        with torch.no_grad():
            hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state.flatten(0, 1)
            kept = labels.flatten().ge(0)
            hidden, wanted = hidden[kept.to(model.device)], labels.flatten()[kept].to(model.device)
            parts = [
                torch.nn.functional.cross_entropy(model.lm_head(part).float(), label, reduction="none")
                for part, label in zip(hidden.split(size), wanted.split(size), strict=True)
            ]
        return kept, torch.cat(parts).double().cpu()

    def losses(row):
        ids, labels = row.ids[row.to_document], row.labels[row.to_document]
        same: dict[int, list[int]] = defaultdict(list)  # length -> first tokens of the documents that have it
        start = 0
        for length in row.lengths["document"]:
            if labels[start : start + length].ge(0).any():
                same[length].append(start)
            start += length
        found = torch.zeros(len(ids), dtype=torch.float64)
        for length, starts in sorted(same.items()):
            places = torch.tensor(starts)[:, None] + torch.arange(length)
            kept, values = losses_of(ids[places], labels[places])
            found[row.to_document[places.flatten()[kept]]] = values
        return found[row.targets]

    return losses


def row_settings(args: Namespace, folder: Path):
    """(a data section whose `heldout` is measured, rows to measure or 0 for one epoch).

    They are those of --config, or of the run that a checkpoint lies in, else the defaults; flags come before both.
    """
    from pretrain.config import DataSection, load_config

    path = args.config
    if path is None and args.checkpoint:
        paths = [parent / "config.yaml" for parent in folder.parents[:2]]
        path = next((path for path in paths if path.is_file()), None)
    if path is not None:
        config = load_config(path)
        data, rows = config.data, config.log.heldout_rows
    else:
        data, rows = DataSection(tokenizer="", vq="", sources=()), 0
    if args.data:
        data = replace(data, heldout=str(args.data))
    if args.sequence_length:
        data = replace(data, sequence_length=args.sequence_length)
    if not data.heldout:
        where = f"{path}: names no held-out shards" if path else "there is no run whose held-out shards are known"
        raise UserError(f"{where}: give --data FOLDER")
    return data, rows if args.rows is None else args.rows


def numbers_of(plan, rows: int) -> Iterator[int]:
    """The first `rows` rows, or with 0 those of one epoch."""
    number = 0
    while number < rows or (not rows and plan.epoch_of(number) == 0):
        yield number
        number += 1


def shards(folder: Path | str) -> dict:
    """Identity of the code shards that were measured on."""
    from tokenization.remote import inside
    from tokenization.shards import read_manifest

    manifest = read_manifest(inside(folder, "manifest.json"))
    return {"name": Path(folder).name, "digest": manifest["fingerprint"]}
