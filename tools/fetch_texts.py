#!/usr/bin/env python
"""Download a parallel text in English, German and Chinese: the Debian Reference, from three Debian packages (GPL-2+).

Sections that all three have become documents. Every tenth section is held out, the same ones in each language, so that
what is held out in one is not trained on in another. Needs apt-get and dpkg-deb, or the three packages as files;
nothing is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import tempfile
import zlib

from pretrain.system.errors import RunFailed, UserError, run_command
from tokenization.files import output_folder, write_text

LANGUAGES = {"en": "en", "de": "de", "zh": "zh-cn"}
HEADING = re.compile(r"^(?:Chapter |Kapitel |第)?\s*(\d+(?:\.\d+)+)\.\s")
SHORTEST, LONGEST = 200, 1600  # characters of a document: tables of contents are shorter, a row is not much longer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/fetch_texts.py --output work/data/texts",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for en, de and zh, each with train and heldout.jsonl"
    )
    parser.add_argument(
        "--packages", type=Path, help="folder that has the packages already (default: apt-get download)"
    )
    return parser.parse_args()


def fetched(folder: Path) -> None:
    """Download the packages to `folder`, with own package lists where the system has none. Raises RunFailed."""
    names = [f"debian-reference-{name}" for name in LANGUAGES.values()]
    (folder / "lists" / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}", "-o", "APT::Sandbox::User=root"]
    for commands in ([["download", *names]], [["update", *own], ["download", *own, *names]]):
        try:
            done = [subprocess.run(["apt-get", "-q", *c], cwd=folder, capture_output=True, text=True) for c in commands]
        except FileNotFoundError:
            raise UserError(
                "there is no apt-get here: fetch the three debian-reference packages and give --packages"
            ) from None
        if done[-1].returncode == 0:
            return
    reason = " ".join((done[-1].stderr.strip() or "no reason given").split())
    raise RunFailed(f"apt-get download {' '.join(names)}: {reason[-300:]}: fetch them elsewhere and give --packages")


def text_of(package: Path, name: str) -> str:
    """Text of one language from its package. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(["dpkg-deb", "-x", package, folder], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(
                "there is no dpkg-deb here, which opens Debian packages: install the package dpkg"
            ) from None
        path = Path(folder) / f"usr/share/debian-reference/debian-reference.{name}.txt.gz"
        if done.returncode or not path.is_file():
            raise UserError(f"{package}: is no package with {path.name} in it: download it again")
        try:
            return gzip.decompress(path.read_bytes()).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise UserError(f"{package}: its {path.name} cannot be read ({error}): download it again") from None


def sections_of(text: str) -> dict[str, str]:
    """Section number, as in 1.1.8 -> its text. The table of contents has the same headings, without text."""
    found: dict[str, list[str]] = {}
    number = None
    for line in text.splitlines():
        heading = HEADING.match(line)
        if heading:
            number = heading.group(1)
            found[number] = []
        if number:
            found[number].append(line.strip())
    return {number: "\n".join(lines).strip() for number, lines in found.items() if sum(map(len, lines)) >= SHORTEST}


def documents_of(section: str) -> list[str]:
    """Split a section into documents of whole paragraphs, each at most LONGEST characters if its paragraphs are."""
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", section):
        if pieces and len(pieces[-1]) + len(paragraph) < LONGEST:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    return [piece for piece in pieces if piece.strip()]


def is_held_out(number: str) -> bool:
    """One section in ten, by its number alone."""
    return int(hashlib.sha256(number.encode()).hexdigest(), 16) % 10 == 0


def write(output: Path, texts: dict[str, str]) -> dict[str, dict[str, int]]:
    """Write <language>/train.jsonl and heldout.jsonl from language -> text. Returns characters by language and
    split. Raises UserError if no section is in all of them."""
    sections = {language: sections_of(text) for language, text in texts.items()}
    common = sorted(set.intersection(*map(set, sections.values())))
    if not common:
        counts = ", ".join(f"{len(found):,} of {language}" for language, found in sections.items())
        raise UserError(f"no section is in all languages ({counts}): give --packages of one release")
    sizes: dict[str, dict[str, int]] = {}
    for language, by_number in sections.items():
        (output / language).mkdir(parents=True, exist_ok=True)
        sizes[language] = {}
        for side in ("train", "heldout"):
            chosen = [number for number in common if is_held_out(number) == (side == "heldout")]
            lines = [
                json.dumps({"id": f"{number}-{index}", "text": text}, ensure_ascii=False)
                for number in chosen
                for index, text in enumerate(documents_of(by_number[number]))
            ]
            write_text(output / language / f"{side}.jsonl", "".join(line + "\n" for line in lines))
            sizes[language][side] = sum(len(by_number[number]) for number in chosen)
    return sizes


def main() -> int:
    """Download, split, write."""
    arguments = parse_arguments()
    output_folder(arguments.output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.packages or Path(temporary)
        if not arguments.packages:
            fetched(folder)
        texts = {}
        for language, name in LANGUAGES.items():
            packages = sorted(folder.glob(f"debian-reference-{name}_*.deb"))
            if not packages:
                raise UserError(f"{folder}: has no debian-reference-{name}_*.deb: download it, or leave --packages out")
            texts[language] = text_of(packages[-1], name)
        sizes = write(arguments.output, texts)
    for language, by_side in sizes.items():
        print(
            f"{arguments.output}/{language}: "
            + ", ".join(f"{side} {size:,} characters" for side, size in by_side.items())
        )
    return 0


if __name__ == "__main__":
    run_command(main)
