"""Generated edits of things that the model was not trained on."""

from __future__ import annotations

from pathlib import Path

BATCH = 32
AVERAGED = 200  # training targets of a kind that its mean is of


def edit_all(export, rows, codes, sampling) -> list:
    """Generated image for each edit; `codes` are those of the source images, or None to leave them out."""
    from tqdm import tqdm

    from tools.generation.batches import draw_batch
    from tools.generation.prompts import Request, prompt_ids, sample_seed

    sources = [[of_row.flatten()] for of_row in codes] if codes is not None else [[]] * len(rows)
    prompts = [prompt_ids(export, "edit", Request(row.instruction), given) for row, given in zip(rows, sources)]
    seeds = [sample_seed(sampling.seed, number, 0) for number in range(len(rows))]
    pictures = []
    for start in tqdm(range(0, len(rows), BATCH), desc="editing", unit="batch", disable=None):
        batch = slice(start, start + BATCH)
        whole, without = zip(*prompts[batch])
        pictures += draw_batch(export, whole, seeds[batch], sampling, without if codes is not None else None)
    return pictures


def others(rows, seed: int) -> list[int]:
    """For each edit another one of its kind, of another thing where possible."""
    import numpy

    chooser, chosen = numpy.random.default_rng(seed), []
    for number, row in enumerate(rows):
        same = [i for i, other in enumerate(rows) if other.kind == row.kind and i != number] or [number]
        best = [i for i in same if rows[i].thing != row.thing] or same
        chosen.append(best[chooser.integers(len(best))])
    return chosen


def mean_targets(folder: Path, size: int) -> dict:
    """Kind -> mean of the training targets, a PIL image."""
    import numpy
    from PIL import Image

    from tools.reports.edit_figures import pixels, read_edits

    by_kind: dict[str, list] = {}
    for row in read_edits(folder, size, AVERAGED):
        by_kind.setdefault(row.kind, []).append(row.target)
    return {
        kind: Image.fromarray(pixels(targets).mean(axis=0).round().astype(numpy.uint8))
        for kind, targets in by_kind.items()
    }


def encode_all(export, pictures):
    """Codes uint16 [n, h, w] of PIL images."""
    import numpy

    batches = [export.vq.encode(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    return numpy.concatenate([numpy.asarray(batch) for batch in batches])
