#!/usr/bin/env python
"""Report page of an image-editing model, on edits of things that it was not trained on.

The model is asked for each edit in its usual English wording. Its result is compared with the target, pixel by pixel, in
the region that the edit changes and outside it, beside what a copy of the source, an answer without the source, and the
target itself after encoding and decoding would have. Intervals (95 %) are bootstraps over things.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from functools import partial

from pretrain.system.errors import UserError, run_command
from tokenization.files import output_folder
from tools.generation.arguments import LARGEST_SCALE, at_least
from tools.reports.edit import (
    edit_all,
    encode_all,
    mean_targets,
    others,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/edit_report.py --model work/demo-edit/model --run work/demo-edit/run "
        "--edits work/data/edits --output work/demo-edit/report",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="export of tools/convert_to_hf.py")
    add("--run", type=Path, required=True, help="run folder, for the curves")
    add("--edits", type=Path, required=True, help="folder of tokenization/demo_edits.py")
    add("--output", type=Path, required=True, help="folder for report.html and its figures")
    add("--side", choices=("heldout", "train"), default="heldout", help="edits to ask for (default: heldout)")
    add("--per-kind", type=at_least(1, int), default=60, help="edits of a kind, at most (default: 60)")
    add(
        "--guidance",
        type=at_least(0, float, LARGEST_SCALE),
        default=1.5,
        help="classifier-free guidance of the instruction (default: 1.5)",
    )
    add(
        "--image-guidance",
        type=at_least(0, float, LARGEST_SCALE),
        default=1.0,
        help="the same of the source picture (default: 1)",
    )
    add("--temperature", type=at_least(0, float), default=0.1, help="of the codes (default: 0.1)")
    add(
        "--seed",
        type=at_least(0, int),
        default=0,
        help="of sampling, of the other target, and of the intervals (default: 0)",
    )
    return parser.parse_args()


def main() -> int:
    """Edit, measure, write."""
    arguments = parse_arguments()
    from tools.reports.demo import losses, read_metrics

    metrics = read_metrics(arguments.run, partial(print, file=sys.stderr))
    if not (arguments.edits / "edits.json").is_file():
        raise UserError(f"{arguments.edits}: no finished editing corpus: make it with tokenization/demo_edits.py")
    output_folder(arguments.output)
    from tools.export.folder import check_square, open_export
    from tools.generation.prompts import Sampling
    from tools.reports import edit_figures, edit_page

    export = open_export(arguments.model)
    check_square(export, "edit_report.py")
    size = export.vq.image_size
    rows = edit_figures.read_edits(arguments.edits / arguments.side, size, arguments.per_kind)
    means = mean_targets(arguments.edits / "train", size)
    rows = [row for row in rows if row.kind in means]
    source_codes, target_codes = (
        encode_all(export, [getattr(row, side) for row in rows]) for side in ("source", "target")
    )
    sampling = Sampling(arguments.guidance, arguments.temperature, 0, 1.0, arguments.seed, arguments.image_guidance)
    candidates = {
        edit_figures.RESULT: edit_all(export, rows, source_codes, sampling),
        edit_figures.COPY: export.vq.decode(source_codes),
        edit_figures.SOURCE: [row.source for row in rows],
        edit_figures.NO_SOURCE: edit_all(export, rows, None, sampling),
        edit_figures.OTHER: export.vq.decode(target_codes[others(rows, arguments.seed)]),
        edit_figures.MEAN: [means[row.kind] for row in rows],
        edit_figures.CEILING: export.vq.decode(target_codes),
    }
    figures = {
        "side": arguments.side,
        "guidance": arguments.guidance,
        "image_guidance": arguments.image_guidance,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "codes_that_an_edit_changes": float((source_codes != target_codes).mean()),
        "losses": losses(arguments.run),
        "kinds": edit_figures.measure(rows, candidates, arguments.seed),
    }
    edit_page.write(arguments.output, figures, metrics, rows, candidates)
    edit_page.print_figures(figures)
    print(f"{arguments.output}/report.html is written")
    return 0


if __name__ == "__main__":
    run_command(main)
