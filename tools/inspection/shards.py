"""Pages of code shards: samples, and training rows with their loss mask."""

from __future__ import annotations

import argparse
import html
from typing import TYPE_CHECKING, Any

from pretrain.system.errors import UserError
from pretrain.system.words import counted

if TYPE_CHECKING:
    from pretrain.data import Data
    from tokenization.shards import CodeDataset
    from tokenization.vq_base import VQ

MOST_NUMBERS = 100  # of documents that are left out, in the page
PLANNED = 1_000_000  # rows that are planned at once, also beyond those of a run, in some seconds


def samples_page(arguments: argparse.Namespace) -> list[str]:
    """Statistics and samples of a dataset."""
    from tokenization.frames import in_words
    from tokenization.shard_cache import Cache
    from tokenization.shards import check_vq, open_dataset
    from tokenization.vq import load_vq
    from tools.inspection.codebook_use import codebook_statistics, shape_statistics, token_statistics
    from tools.inspection.data_page import document, table

    dataset = open_dataset(arguments.shards, Cache(arguments.cache.absolute()) if arguments.cache else None)
    vq = load_vq(arguments.vq)
    check_vq(dataset.manifest, vq)
    if arguments.verify:
        dataset.verify()
        print(f"sound: {counted(len(dataset.manifest['shards']), 'shard')}")
    tokens = token_statistics(dataset)
    for line in tokens:
        print(f"{line[0]}: {line[1]:,} documents, {line[3]:,} image tokens, {line[5]:,} text tokens")
    heads = ("source", "documents", "pictures", "image tokens", "texts", "text tokens", "median", "99 %", "most")
    parts = ["<h2>Tokens</h2><p>Of a document: median, 99th percentile and most.</p>", table(heads, tokens)]
    codes = codebook_statistics(dataset, arguments.codebook_documents)
    if codes:
        columns = ("source", "pictures", "codes used", "perplexity", "bits a code", "after one", "after two")
        parts += [f"<h2>Codebook of {dataset.manifest['vq']['codebook_size']:,}</h2>", table(columns, codes)]
    shapes = shape_statistics(dataset)
    if shapes:
        print("pictures by shape: " + ", ".join(f"{word} {count:,}" for word, count, _ in shapes))
        parts += ["<h2>Shapes</h2>", table(("rows*columns", "pictures", "codes of each"), shapes)]
    rejects = dataset.manifest["rejects"]
    if rejects:
        parts += ["<h2>Rejects</h2>", table(("reason", "documents"), rejects.items())]
    if frames := in_words(dataset.manifest.get("first_frames", {})):
        print(frames)
        parts.append(f"<p>{html.escape(frames)}</p>")
    left_out = dataset.lengths.left_out()
    if len(left_out):
        print(f"{len(left_out):,} documents are left out of training: they repeat pictures of other files")
        shown = ", ".join(map(str, left_out[:MOST_NUMBERS])) + (" ..." if len(left_out) > MOST_NUMBERS else "")
        parts.append(
            f"<p>{len(left_out):,} documents are in the shards, but left out of training, since they repeat "
            f"pictures of other files: {shown}</p>"
        )
    parts.append("<h2>Samples</h2>")
    count = min(12, len(dataset))
    for number in arguments.samples or [place * len(dataset) // count for place in range(count)]:
        if not 0 <= number < len(dataset):
            raise UserError(f"--samples {number}: {arguments.shards} has documents 0 to {len(dataset) - 1}")
        sample = dataset[number]
        about = f"{number}: {sample['id']} ({sample['kind']}, {sample['source']}; {_counts(sample)})"
        about += ", left out of training" if number in left_out else ""
        parts.append(document(about, shown_sample(dataset, number, vq)))
    return parts


def shown_sample(dataset: CodeDataset, number: int, vq: VQ) -> list[Any]:
    """Parts of a document, images decoded from their codes."""
    from tokenization.sample import parts_of
    from tools.inspection.data_page import Shown

    sample = dataset[number]
    shown = []
    for part in parts_of(sample):
        if part.codes is not None:
            shown.append(Shown(vq.decode(part.codes.reshape((1, *(part.grid or ()))))[0], part.role))
        for place, (text, _) in enumerate(part.wordings):
            shown.append(Shown(sample["texts"][text], "or" if place else part.role))
    return shown


def rows_page(arguments: argparse.Namespace) -> list[str]:
    """Rows of a run, as training reads them."""
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.process_ranks import ProcessRanks
    from pretrain.tasks import TASK_NAMES
    from tokenization.shards import check_vq
    from tokenization.vq import load_vq
    from tools.inspection.data_page import document, table

    config = load_config(arguments.config, arguments.set)
    run = config.run.steps * config.data.global_batch_size
    for number in arguments.rows:
        if not 0 <= number < max(run, PLANNED):
            raise UserError(
                f"--rows {number}: the run has {run:,} rows, counted from 0 (run.steps x data.global_batch_size): give one of them"
            )
    data = Data(config, ProcessRanks())
    vq = load_vq(arguments.vq or config.data.vq)
    for dataset in data.train.datasets:
        check_vq(dataset.manifest, vq)
    parts = ["<p>Green is learned, grey is only read. A text or picture that is cut begins in another row.</p>"]
    for number in arguments.rows:
        row, pieces = data.train[number], data.train.plan.row(number)
        counts = {name: sum(row.lengths[name]) for name in ("document", "text", "vision")}
        targets = len(row.targets)
        epoch = data.train.plan.epoch_of(number)
        parts.append(f"<h2>Row {number}, epoch or stage {epoch}</h2>")
        parts.append(
            table(
                ("tokens", "text", "vision", "learned", "padding", "documents"),
                [(counts["document"], counts["text"], counts["vision"], targets, row.padding, len(pieces))],
            )
        )
        print(
            f"row {number}: {len(pieces)} documents, {targets:,} of {counts['document']:,} tokens learned, "
            f"{row.padding:,} padding"
        )
        ids, labels = row.ids[row.to_document].numpy(), row.labels[row.to_document].numpy()
        at = 0
        for piece in pieces:
            end = at + piece.length
            sample = data.train.datasets[piece.source][piece.document]
            about = f"{sample['id']} ({sample['kind']}, as {TASK_NAMES[piece.task]}; {sample['source']}, "
            about += f"{piece.length:,} tokens"
            about += f" from {piece.start:,} on)" if piece.start else ")"
            parts.append(document(about, shown_ids(ids[at:end], labels[at:end], data, vq)))
            at = end
    return parts


def shown_ids(ids: Any, labels: Any, data: Data, vq: VQ) -> list[Any]:
    """Ids of a row split by modality and loss mask; whether token n has a loss is said by the label before it."""
    import numpy

    from model.hf.shapes_uni_x import trailing_shape
    from model.vocabulary import IGNORED
    from tools.inspection.data_page import Shown

    vocabulary = data.model_config.vocabulary
    learned = numpy.concatenate([[False], labels[:-1] != IGNORED])
    codes = vocabulary.is_code(ids)
    changes = numpy.flatnonzero((learned[1:] != learned[:-1]) | (codes[1:] != codes[:-1])) + 1
    shown = []
    for low, high in zip([0, *changes.tolist()], [*changes.tolist(), len(ids)]):
        stretch = ids[low:high]
        if not codes[low]:
            text = data.tokenizer.decode(stretch.tolist(), skip_special_tokens=False)
            shown.append(Shown(text, "", bool(learned[low])))
            continue
        shape = trailing_shape(ids[: low - 1].tolist(), data.train.tokenized.sizes)  # preceded by <|vision_start|>
        grid = data.templates.grids[shape or 0]
        picture = vq.decode((stretch - vocabulary.image_token_offset).reshape(1, *grid))[0]
        shown.append(Shown(picture, "", bool(learned[low])))
    return shown


def _counts(sample: dict[str, Any]) -> str:
    grids = ", ".join(f"{height} x {width}" for height, width in sample["grids"].reshape(-1, 2).tolist())
    return f"{len(sample['text_ids']):,} text tokens" + (f", codes {grids}" if grids else "")
