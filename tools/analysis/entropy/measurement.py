"""Entropies of one stream of sequences at several sample sizes, and whether they are converged."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy

from tokenization.files import save_picture, write_text
from tools.analysis.entropy.counting import Order, Sequences, count, passes_needed
from tools.analysis.entropy.estimators import chao_shen, coverage
from tools.reports.figure_layout import fit_with_legend

TOLERANCE = 0.1  # bits that a converged estimate may move when the sample is doubled
COVERED = 0.9  # probability of the n-grams that were seen
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Entropy:
    """Conditional entropy of a token, given the n - 1 before it, in bits."""

    name: str
    modality: str  # text or image
    n: int
    share: float  # of the sequences
    sequences: int
    windows: int
    distinct: int  # n-grams seen
    plug_in: float
    corrected: float  # Chao and Shen
    low: float  # about the corrected one: 1.96 standard errors, and the size of the correction
    high: float
    coverage: float  # probability of the n-grams that were seen
    trusted: bool = False  # see `judged`


def entropy_of(name: str, modality: str, order: Order, share: float, sequences: int) -> Entropy:
    """Entropy from the counts of one order."""
    plain, error = order.entropy()
    joint = order.histogram()
    corrected = chao_shen(*joint) - (chao_shen(*order.histogram(prefixes=True)) if order.n > 1 else 0.0)
    width = NORMAL_95 * error + abs(corrected - plain)
    return Entropy(
        name,
        modality,
        order.n,
        share,
        sequences,
        order.windows,
        int(joint[1].sum()),
        plain,
        corrected,
        corrected - width,
        corrected + width,
        coverage(*joint),
    )


def measure(name: str, modality: str, sequences: Sequences, orders: int, points: int, memory: float) -> list[Entropy]:
    """Entropies of all orders at the whole size, half of it, a quarter ... (`points` sizes), smallest first.

    memory: bytes that counting may take. The sequences are gone through once for each size, or oftener where memory
    asks for it.
    """
    lengths = numpy.array([len(tokens) for tokens in sequences()], dtype=numpy.int64)
    found = []
    for point in reversed(range(points)):
        share = 0.5**point
        passes = passes_needed(int(lengths.sum() * share), orders, memory)
        counted = count(sequences, orders, share, passes)
        here = round(len(lengths) * share)
        found += [entropy_of(name, modality, order, share, here) for order in counted]
    return judged(found)


def judged(found: list[Entropy]) -> list[Entropy]:
    """Estimates with a flag for trust: n-grams are covered, and doubling the sample did not move the estimate.

    Either alone would pass a plug-in estimate that is near zero because every n-gram was seen once, at any size.
    """
    made: list[Entropy] = []
    before: dict[tuple[str, int], Entropy] = {}
    for one in found:
        last = before.get((one.name, one.n))
        still = (
            last is not None and max(abs(one.plug_in - last.plug_in), abs(one.corrected - last.corrected)) < TOLERANCE
        )
        made.append(Entropy(**{**asdict(one), "trusted": bool(still and one.coverage >= COVERED)}))
        before[one.name, one.n] = one
    return made


def write(folder: Path, found: list[Entropy]) -> None:
    """Write entropy.csv (all sizes), entropy.png and summary.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, [field.name for field in fields(Entropy)])
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    write_text(folder / "entropy.csv", lines.getvalue())
    plot(found, folder / "entropy.png")
    write_text(folder / "summary.md", summary(found))  # written last: marks a complete result


def whole(found: list[Entropy]) -> Iterator[tuple[str, list[Entropy]]]:
    """(name, estimates of all sizes) of each stream, in order."""
    for name in dict.fromkeys(one.name for one in found):
        yield name, [one for one in found if one.name == name]


def summary(found: list[Entropy]) -> str:
    """One table of the whole samples, and a sentence on the limits of each stream."""
    orders = sorted({one.n for one in found})
    words = [
        "# Conditional n-gram entropy, bits a token",
        "",
        "Corrected for unseen n-grams (Chao and Shen), with the plug-in estimate in brackets. * marks what cannot be "
        "trusted "
        f"at this size: n-grams seen cover less than {COVERED:.0%} of the probability, or half the data give another "
        f"value "
        f"(by {TOLERANCE} bits or more).",
        "",
        "| stream | tokens | " + " | ".join(f"n={n}" for n in orders) + " |",
        "|---" * (2 + len(orders)) + "|",
    ]
    limits = []
    for name, all_sizes in whole(found):
        largest = {one.n: one for one in all_sizes if one.share == 1.0}
        cells = [_cell(largest.get(n)) for n in orders]
        words.append(f"| {name} | {largest[1].windows:,} | {' | '.join(cells)} |")
        good = [n for n, one in largest.items() if one.trusted]
        sizes = []
        for n in good:
            enough = min(one.windows for one in all_sizes if one.n == n and one.trusted)
            sizes.append(f"n={n} from {enough:,} tokens on")
        bad = [str(n) for n in largest if n not in good]
        limits.append(
            f"- {name}: "
            + ("; ".join(sizes) if sizes else "no order can be trusted")
            + (f"; not yet at this size: n={', '.join(bad)}" if bad else "")
            + "."
        )
    return "\n".join([*words, "", "What can be trusted:", "", *limits, ""])


def _cell(one: Entropy | None) -> str:
    if one is None:
        return "-"
    return f"{one.corrected:.2f} ({one.plug_in:.2f}){'' if one.trusted else '*'}"


def plot(found: list[Entropy], path: Path) -> None:
    """Plot estimates by sample size, a panel for each stream: corrected as lines, plug-in dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    streams = list(whole(found))
    figure, axes = pyplot.subplots(
        1, len(streams), figsize=(3.4 * len(streams) + 0.6, 3.4), dpi=110, sharey=True, squeeze=False
    )
    for axis, (name, sizes) in zip(axes[0], streams):
        for number, n in enumerate(sorted({one.n for one in sizes})):
            line = [one for one in sizes if one.n == n]
            tokens = [one.windows for one in line]
            axis.plot(
                tokens,
                [one.corrected for one in line],
                "o-",
                color=f"C{number}",
                markersize=3,
                linewidth=1.1,
                label=f"n={n}",
            )
            axis.plot(tokens, [one.plug_in for one in line], ":", color=f"C{number}", linewidth=1.1)
        axis.set(title=name, xlabel="tokens", xscale="log")
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("bits a token (dotted: plug-in)")
    fit_with_legend(figure, axes[0][-1])
    save_picture(figure, path)
    pyplot.close(figure)
