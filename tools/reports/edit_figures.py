"""Distance of edited images to their targets, inside and outside the changed region, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.system.errors import UserError
from tokenization.demo_edits import SEEN, thing_of

if TYPE_CHECKING:
    import numpy
    from PIL import Image

REPLICATES = 1000
INSIDE, OUTSIDE = "inside", "outside"
RESULT, COPY, SOURCE, NO_SOURCE, OTHER, MEAN, CEILING = (
    "result",
    "copied codes",
    "source as it is",
    "instruction only",
    "another target",
    "mean target",
    "target's codes",
)
CANDIDATES = {
    RESULT: "what the model made of the source picture and the instruction",
    COPY: "the source picture, encoded and decoded, as a model would that copies it",
    SOURCE: "the source picture as it was drawn",
    NO_SOURCE: "what the model made of the instruction, without a source picture",
    OTHER: "the target of another edit of the same kind, encoded and decoded",
    MEAN: "the mean of training targets of the same kind",
    CEILING: "the target, encoded and decoded: nothing that the model can say is nearer, but for chance",
}
BETTER_THAN = (
    (COPY, INSIDE),
    (SOURCE, INSIDE),
    (NO_SOURCE, INSIDE),
    (NO_SOURCE, OUTSIDE),
    (OTHER, INSIDE),
    (OTHER, OUTSIDE),
    (MEAN, INSIDE),
    (MEAN, OUTSIDE),
)
"""What an edit must be nearer to its target than, and where. Outside, a copy cannot be beaten: nothing changes there."""


@dataclass(frozen=True)
class EditRow:
    """One edit: its images as RGB of the image tokenizer's size."""

    id: str
    kind: str
    instruction: str
    source: Image.Image
    target: Image.Image

    @property
    def thing(self) -> tuple[int, ...]:
        """What both images show: edits of one thing are correlated."""
        return thing_of(self.id.split(":")[1])


def read_edits(folder: Path, size: int, most: int) -> list[EditRow]:
    """At most `most` edits of each kind from a folder of tokenization/demo_edits.py, by kind. Raises UserError.

    Which ones, and in which order, is drawn once and for all, by a hash of their ids.
    """
    import hashlib

    import pyarrow
    import pyarrow.parquet

    from tokenization.preprocess import open_image, preprocess

    rows = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            rows += pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: is no sound parquet file ({error}): make {folder} again with demo_edits.py"
            ) from None
    if not rows:
        raise UserError(f"{folder} holds no edits: give --edits a folder that tokenization/demo_edits.py made")
    by_kind: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest()):
        by_kind.setdefault(row["kind"], []).append(row)
    found = []
    for kind in sorted(by_kind):
        for row in by_kind[kind][:most]:
            source, target = (preprocess(open_image(data), size) for data in row["image_list"])
            found.append(EditRow(row["id"], kind, row["instruction_list"][0][0], source, target))
    return found


def pixels(pictures: Sequence[Image.Image]) -> numpy.ndarray:
    """PIL images -> float32 [n, h, w, 3], 0..255."""
    import numpy

    return numpy.stack([numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) for picture in pictures])


def changed(sources: numpy.ndarray, targets: numpy.ndarray) -> numpy.ndarray:
    """Pixels that an edit changes: [n, h, w, 3] twice -> bool [n, h, w]: a channel differs by more than SEEN."""
    return abs(sources - targets).max(axis=3) > SEEN


def distances(pictures: numpy.ndarray, targets: numpy.ndarray, mask: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Mean absolute difference of the channels, 0..255, of each image to its target, inside and outside of `mask`."""
    error = abs(pictures - targets).mean(axis=3)
    inside, outside = (error * mask).sum(axis=(1, 2)), (error * ~mask).sum(axis=(1, 2))
    count = mask.sum(axis=(1, 2))
    return {INSIDE: inside / count.clip(1), OUTSIDE: outside / (mask[0].size - count).clip(1)}


def interval(values: numpy.ndarray, groups: Sequence, seed: int) -> list[float]:
    """Mean of `values` [n] and its 95 % interval by cluster bootstrap over `groups`: edits of one thing are drawn
    together."""
    import numpy

    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    of_value = numpy.array([number[group] for group in groups])
    sums, counts = (numpy.bincount(of_value, weights) for weights in (values, numpy.ones(len(values))))
    drawn = numpy.random.default_rng(seed).integers(0, len(number), (REPLICATES, len(number)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [float(values.mean()), *(float(edge) for edge in numpy.quantile(means, (0.025, 0.975)))]


def measure(rows: Sequence[EditRow], candidates: Mapping[str, Sequence], seed: int) -> dict:
    """Results of all edits and of each kind. `candidates`: a name of CANDIDATES -> an image for each row."""
    import numpy

    sources, targets = (pixels([getattr(row, side) for row in rows]) for side in ("source", "target"))
    mask = changed(sources, targets)
    found = {name: distances(pixels(pictures), targets, mask) for name, pictures in candidates.items()}
    kinds = numpy.array([row.kind for row in rows])
    groups = [row.thing for row in rows]
    figures = {}
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        at = numpy.flatnonzero((kinds == kind) | (kind == "all"))
        of = [groups[i] for i in at]
        gap = {(name, where): found[RESULT][where][at] - found[name][where][at] for name, where in BETTER_THAN}
        figures[kind] = {
            "edits": len(at),
            "things": len(set(of)),
            "changed_pixels": float(mask[at].mean()),
            "distance": {
                name: {where: interval(values[where][at], of, seed) for where in (INSIDE, OUTSIDE)}
                for name, values in found.items()
            },
            "result_minus": {f"{name}, {where}": interval(values, of, seed) for (name, where), values in gap.items()},
            "nearer_than_the_copy": float((gap[COPY, INSIDE] < 0).mean()),
        }
    return figures


def distance_table(figures: dict, where: str) -> list[list[str]]:
    """Table of mean distances inside or outside the changed region, a line per kind, head first."""
    names = list(next(iter(figures.values()))["distance"])
    lines = [["", "edits", *names]]
    for kind, of_kind in figures.items():
        means = [of_kind["distance"][name][where] for name in names]
        lines.append(
            [kind, str(of_kind["edits"]), *(f"{mean:.1f} ({low:.1f}-{high:.1f})" for mean, low, high in means)]
        )
    return lines


def verdicts(figures: dict) -> list[str]:
    """A line for each baseline that edits must beat, over all kinds, and how many kinds beat it."""
    lines = []
    for name, where in BETTER_THAN:
        key = f"{name}, {where}"
        mean, low, high = figures["all"]["result_minus"][key]
        answer = "nearer" if high < 0 else "farther" if low > 0 else "no clear difference"
        kinds = [kind for kind in figures if kind != "all"]
        better = [kind for kind in kinds if figures[kind]["result_minus"][key][2] < 0]
        lines.append(
            f"{where} the changed region, result against {name}: {mean:+.1f} ({low:+.1f} to {high:+.1f}), "
            f"{answer}; nearer in {len(better)} of {len(kinds)} kinds"
        )
    share = figures["all"]["nearer_than_the_copy"]
    lines.append(f"nearer to the target than a copy is, in the changed region: {share:.0%} of the edits")
    return lines
