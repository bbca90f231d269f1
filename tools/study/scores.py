"""Retrieval scores: log probabilities of pairs of texts and images.

Log probabilities of each text with each picture, and who is first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from pretrain.row_tensors import Row, assemble
from pretrain.rows import RowSize
from pretrain.tasks import IMAGE_TO_TEXT, TEXT_TO_IMAGE, TokenizedPrompts, build_document
from tokenization.sample import PICTURE, SHAPE

Losses = Callable[[Row], Any]  # a row -> losses [targets] of its target tokens, in nats


def target_losses(opened) -> Losses:
    """Losses of a row's targets under an open checkpoint (`tools.runs.checkpoint_model.Opened`)."""
    import torch

    from model.routing import route

    config, model = opened.config, opened.model
    weight = next(model.parameters())

    def losses(row: Row):
        row = row.to(weight.device)
        routing = route(row.positions, row.to_document, row.lengths, config.head_dim, config.rope, weight.dtype)
        with torch.no_grad():
            return model(row.ids, row.labels, row.targets, routing)[0].double().cpu()

    return losses


def document_log_likelihoods(
    losses: Losses, tokenized: TokenizedPrompts, documents: Sequence[tuple], size: RowSize
) -> numpy.ndarray:
    """float64 [documents]: log probability of all target tokens of each (ids, labels), computed in packed rows."""
    import torch

    found: list[float] = []
    waiting: list[tuple] = []
    held = 0

    def finish() -> None:
        row = assemble(0, waiting, tokenized.vocabulary, size)
        sums = torch.zeros(len(row.lengths["document"]), dtype=torch.float64)
        sums.index_add_(0, row.document_of_targets(), -losses(row))
        found.extend(sums[: len(waiting)].tolist())

    for ids, labels in documents:
        if waiting and held + len(ids) > size.capacity:
            finish()
            waiting, held = [], 0
        waiting.append((ids, labels))
        held += len(ids)
    if waiting:
        finish()
    return numpy.array(found)


def pair_scores(
    losses: Losses,
    tokenized: TokenizedPrompts,
    texts: Sequence,
    pictures: Sequence,
    task: int,
    sequence_length: int,
    shapes: Sequence[int] = (),
) -> numpy.ndarray:
    """float64 [texts, images] log probability of one given the other: of images for TEXT_TO_IMAGE, else of texts.

    texts: token ids of each; pictures: codes of each; shapes: numbers of their grids, all the first where there are none.
    """
    shown = list(zip(pictures, shapes or [0] * len(pictures), strict=True))
    documents = [
        build_document(tokenized, task, 0, text, codes, False, shape) for text in texts for codes, shape in shown
    ]
    found = document_log_likelihoods(losses, tokenized, documents, RowSize(sequence_length, 8))
    return found.reshape(len(texts), len(pictures))


def first_place(scores: numpy.ndarray) -> dict[str, float]:
    """log p(candidate | query) as [queries, candidates], the right one on the diagonal -> recall at 1.

    What a candidate has with every query (likely texts, empty pictures) is taken out: its mean probability over
    queries. `accuracy`: share of queries whose right candidate is first; `rank`: mean reciprocal place; by chance 1 /
    candidates.
    """
    highest = scores.max(0, keepdims=True)
    mean = highest + numpy.log(numpy.exp(scores - highest).mean(0, keepdims=True))
    gain = scores - mean
    right = numpy.diag(gain)[:, None]
    place = (gain > right).sum(1) + ((gain == right).sum(1) - 1) / 2 + 1  # ties share their ranks
    return {"accuracy": float((place == 1).mean()), "rank": float((1 / place).mean()), "candidates": len(scores)}


def both_directions(
    losses: Losses, tokenized: TokenizedPrompts, dataset, pairs: int, sequence_length: int
) -> dict[str, dict]:
    """Text-to-image and image-to-text retrieval among `pairs` documents, spread over a dataset of code shards.

    Documents with a text or a picture that came before are left out: a right answer must be the only one.
    """
    texts, pictures, shapes = [], [], []
    seen: set = set()
    order = numpy.random.default_rng(0).permutation(len(dataset))
    for number in order.tolist():
        document = dataset[number]
        text = document["text_ids"][: int(document["text_lengths"][0])] if len(document["text_lengths"]) else ()
        marks = {("text", document["texts"][0]), ("picture", document["codes"].tobytes())}
        if not len(text) or not len(document["codes"]) or marks & seen:
            continue
        seen |= marks
        texts.append(text)
        pictures.append(document["codes"])
        shapes.append(int(document["layout"][document["layout"] & PICTURE != 0][0]) // SHAPE)
        if len(texts) == pairs:
            break
    to_picture = pair_scores(losses, tokenized, texts, pictures, TEXT_TO_IMAGE, sequence_length, shapes)
    to_text = pair_scores(losses, tokenized, texts, pictures, IMAGE_TO_TEXT, sequence_length, shapes)
    return {"text_to_picture": first_place(to_picture), "picture_to_text": first_place(to_text.T)}
