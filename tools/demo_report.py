#!/usr/bin/env python
"""Report page of a demo model: curves, reconstructions, generated images next to the real ones.

The main figure asks whether a picture that was drawn for a training name is nearest, in pixels, to the picture of that
name, among all training pictures (decoded from their codes, equal ones counted once). Chance is the share of training
pictures that carry the name.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from functools import partial

from pretrain.system.errors import run_command
from tokenization.files import output_folder
from tools.generation.arguments import LARGEST_SCALE, at_least
from tools.reports.demo import (
    SHOWN,
    caption,
    check_data,
    draw,
    load_gallery,
    losses,
    measure_captions,
    measure_recall,
    nearest,
    pixels,
    read_metrics,
    reconstruction,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/demo_report.py --model work/demo/model --run work/demo/run --data work/data "
        "--output work/demo/report",
    )
    parser.add_argument("--model", type=Path, required=True, help="export of tools/convert_to_hf.py")
    parser.add_argument("--run", type=Path, required=True, help="run folder, for curves and samples")
    parser.add_argument("--data", type=Path, required=True, help="folder with shards/train, shards/heldout and corpus")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.html and its figures")
    parser.add_argument(
        "--prompts",
        type=at_least(1, int),
        default=300,
        help="training names to draw, and pictures to caption (default: 300)",
    )
    parser.add_argument(
        "--guidance", type=at_least(0, float, LARGEST_SCALE), default=3.0, help="classifier-free guidance (default: 3)"
    )
    parser.add_argument("--temperature", type=at_least(0, float), default=0.5, help="of the codes (default: 0.5)")
    parser.add_argument("--seed", type=at_least(0, int), default=0, help="choice of names, and sampling (default: 0)")
    return parser.parse_args()


def main() -> int:
    """Generate, measure, write."""
    arguments = parse_arguments()
    read_metrics(arguments.run, partial(print, file=sys.stderr))
    output_folder(arguments.output)
    from tools.export.folder import check_square, open_export
    from tools.generation.prompts import Sampling

    export = open_export(arguments.model)
    check_square(export, "demo_report.py")
    check_data(arguments.data, export.vq.fingerprint)
    import numpy

    from tools.reports import report_page

    train, heldout = (
        load_gallery(arguments.data / "shards" / side, export.templates.grid) for side in ("train", "heldout")
    )
    chooser = numpy.random.default_rng(arguments.seed)
    sampling = Sampling(arguments.guidance, arguments.temperature, 0, 1.0, arguments.seed)
    every_name = sorted({name for names in train.names for name in names})
    count = min(arguments.prompts, len(every_name))
    seen = [every_name[i] for i in chooser.permutation(len(every_name))[:count]]
    unseen_at = chooser.permutation(len(heldout.names))[:SHOWN].tolist()
    unseen = [heldout.names[i][0] for i in unseen_at]
    real_train = export.vq.decode(train.codes)
    drawn, drawn_unseen = draw(export, seen, sampling), draw(export, unseen, sampling)
    order = nearest(pixels(drawn), pixels(real_train))
    how = {"guidance": arguments.guidance, "temperature": arguments.temperature, "seed": arguments.seed}
    figures = {
        "drawn_names": {**measure_recall(train, seen, order), **how},
        "losses": losses(arguments.run),
        "captions": {},
    }
    captions = {}
    for side, gallery in (("seen", train), ("held-out", heldout)):
        picked = chooser.permutation(len(gallery.names))[: arguments.prompts].tolist()
        answers = caption(export, gallery.codes[picked])
        figures["captions"][side] = measure_captions(gallery, picked, answers)
        captions[side] = list(zip(picked, answers))[:SHOWN]
    real, decoded, names, psnr = reconstruction(export, arguments.data, heldout, 64)
    figures["reconstruction_psnr"] = {"pictures": len(real), "psnr": round(psnr, 2)}
    own = [next(i for i, names in enumerate(train.names) if name in names) for name in seen]
    report_page.write(
        arguments.output,
        figures,
        read_metrics(arguments.run),
        {
            "seen": [
                (name, real_train[at], picture, train.names[row[0]][0])
                for name, at, picture, row in zip(seen, own, drawn, order)
            ][:SHOWN],
            "unseen": list(zip(unseen, export.vq.decode(heldout.codes[unseen_at]), drawn_unseen)),
            "reconstructions": list(zip(names, real, decoded))[:SHOWN],
            "captions": {
                "seen": [(train.names[i][0], real_train[i], text) for i, text in captions["seen"]],
                "held-out": [
                    (heldout.names[i][0], export.vq.decode(heldout.codes[[i]])[0], text)
                    for i, text in captions["held-out"]
                ],
            },
        },
        arguments.run,
    )
    report_page.print_figures(figures)
    print(f"{arguments.output}/report.html is written")
    return 0


if __name__ == "__main__":
    run_command(main)
