"""Measurements of a demo model: generated images, captions, losses, reconstructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from tools.runs.lines import Lines, left_out, of_metrics

SHOWN = 24  # pictures of each side that the page shows
CAPTION_TOKENS = 24  # of the longest caption
BATCH = 32


@dataclass
class Gallery:
    """Images of one dataset without duplicates."""

    names: list[list[str]]  # English names of each distinct picture
    codes: Any  # array, uint16 [n, h, w]
    ids: list[list[str]]  # ids of the documents that share the picture
    texts: list[list[str]]  # their names in all languages

    def chance(self, name: str) -> float:
        """Share of the images with the caption `name`."""
        return sum(name in names for names in self.names) / len(self.names)


def load_gallery(folder: Path, grid: tuple[int, int]) -> Gallery:
    """Distinct images of a folder of code shards, in order of first appearance."""
    import numpy

    from tokenization.shards import open_dataset

    names: dict[bytes, list[str]] = {}
    ids: dict[bytes, list[str]] = {}
    texts: dict[bytes, list[str]] = {}
    for document in open_dataset(folder):
        key = document["codes"].tobytes()
        names.setdefault(key, []).append(document["texts"][0])
        ids.setdefault(key, []).append(document["id"])
        texts.setdefault(key, []).extend(document["texts"])
    codes = numpy.stack([numpy.frombuffer(key, dtype=numpy.uint16).reshape(grid) for key in names])
    return Gallery(list(names.values()), codes, list(ids.values()), list(texts.values()))


def draw(export, names: list[str], sampling) -> list:
    """Generate one image for each name, in batches."""
    from tqdm import tqdm

    from model.prompts import text_to_image_ids
    from tools.generation.batches import draw_batch
    from tools.generation.prompts import sample_seed

    ids = [text_to_image_ids(name, export.encode, export.vocabulary, export.templates) for name in names]
    seeds = [sample_seed(sampling.seed, number, 0) for number in range(len(names))]
    pictures = []
    for start in tqdm(range(0, len(names), BATCH), desc="drawing", unit="batch", disable=None):
        pictures += draw_batch(export, ids[start : start + BATCH], seeds[start : start + BATCH], sampling)
    return pictures


def pixels(pictures: list):
    """PIL images -> float32 [n, pixels] in 0..1."""
    import numpy

    return numpy.stack([numpy.asarray(p.convert("RGB"), dtype=numpy.float32).ravel() / 255 for p in pictures])


def nearest(drawn, real):
    """[n, pixels], [m, pixels] -> for each generated image the real ones by distance, int64 [n, m]."""
    import numpy

    distances = (real**2).sum(1)[None] - 2 * drawn @ real.T  # the drawn picture's own norm changes no order
    return numpy.argsort(distances, axis=1, kind="stable")


def measure_recall(gallery: Gallery, names: list[str], order) -> dict:
    """Recall at 1 and 5 of generated images, with the level of chance, and the rank of the right image."""
    import statistics

    places = [next(at for at, i in enumerate(row, 1) if n in gallery.names[i]) for n, row in zip(names, order)]
    hits = {k: sum(any(n in gallery.names[i] for i in row[:k]) for n, row in zip(names, order)) for k in (1, 5)}
    chance = sum(gallery.chance(name) for name in names) / len(names)
    return {
        "prompts": len(names),
        "training_pictures": len(gallery.names),
        "nearest_has_the_name": hits[1],
        "rate": hits[1] / len(names),
        "one_of_five_nearest_has_the_name": hits[5],
        "chance": chance,
        "times_chance": hits[1] / len(names) / chance,
        "median_place_of_the_right_picture": statistics.median(places),
    }


def caption(export, codes) -> list[str]:
    """Greedy captions of images with codes [n, h, w], in batches."""
    from tqdm import tqdm

    from model.prompts import image_to_text_ids
    from tools.generation.batches import continue_texts

    prompts = [image_to_text_ids(one.flatten(), export.encode, export.vocabulary, export.templates) for one in codes]
    answers = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="captioning", unit="batch", disable=None):
        answers += continue_texts(export, prompts[start : start + BATCH], CAPTION_TOKENS)
    return [export.decode(ids).strip() for ids in answers]


def measure_captions(gallery: Gallery, picked: list[int], answers: list[str]) -> dict:
    """Share of captions that name their image, in any language, and the best that one caption for all could reach."""
    right = sum(text in gallery.texts[i] for i, text in zip(picked, answers, strict=True))
    carried = Counter(name for names in gallery.texts for name in set(names))
    return {
        "pictures": len(picked),
        "right": right,
        "rate": right / len(picked),
        "different": len(set(answers)),
        "best_of_one_for_all": max(carried.values()) / len(gallery.texts),
    }


def losses(run: Path) -> dict:
    """First and last held-out and training losses of a run, by modality."""
    lines = read_metrics(run)
    found = {}
    for name in ("heldout/loss_image", "heldout/loss_text", "train/loss_image", "train/loss_text"):
        values = [(line["step"], line[name]) for line in lines if name in line]
        if values:
            found[name] = {
                "first_step": values[0][0],
                "first": values[0][1],
                "last": values[-1][1],
                "last_step": values[-1][0],
            }
    return found


def read_metrics(run: Path, tell: Callable[[str], None] = lambda line: None) -> list[dict]:
    """Lines of metrics.jsonl that can be used; how many cannot is told. Raises UserError when there are none."""
    path, lines = run / "metrics.jsonl", Lines(run)
    if not path.is_file():
        raise UserError(f"{path} is missing: --run must be a run folder of pretrain/train.py")
    found = lines.last(path, of_metrics)
    if not found:
        raise UserError(f"{path} holds no line of a run: --run must be a run folder that was trained")
    if count := sum(lines.damaged.values()):
        tell(left_out(count, path))
    return found


def check_data(data: Path, vq_fingerprint: str) -> None:
    """Raises UserError for shards of another image tokenizer, and where the corpus' held-out pictures are missing."""
    from tokenization.shards import open_dataset

    pictures = data / "corpus" / "heldout" / "folder" / "images"
    if not pictures.is_dir():
        raise UserError(f"{pictures} is missing: --data must be the folder that make demo filled")
    for side in ("train", "heldout"):
        folder = data / "shards" / side
        if open_dataset(folder).manifest["vq"]["fingerprint"] != vq_fingerprint:
            raise UserError(f"{folder}: was made with another image tokenizer than the model: give the data of its run")


def reconstruction(export, data: Path, gallery: Gallery, count: int) -> tuple[list, list, list[str], float]:
    """Held-out images and their reconstructions, their names, and the PSNR over `count` of them."""
    import math

    from tokenization.preprocess import open_image, preprocess

    folder = data / "corpus" / "heldout" / "folder" / "images"
    chosen = range(0, len(gallery.names), max(1, len(gallery.names) // count))
    decoded = export.vq.decode(gallery.codes[list(chosen)])
    size = decoded[0].width  # of the shards, which need not be the image tokenizer's own
    real = [preprocess(open_image(folder / f"{gallery.ids[i][0]}.png"), size) for i in chosen]
    error = float(((pixels(real) - pixels(decoded)) ** 2).mean())
    return real, decoded, [gallery.names[i][0] for i in chosen], -10 * math.log10(error)
