"""Sections of a parallel text become documents; the same sections are held out in every language."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from tests.commands import assert_refused
from tools.fetch_texts import LANGUAGES, LONGEST, documents_of, is_held_out, sections_of, write


def book(language: str, sections: int = 40) -> str:
    """A table of contents, then sections of some paragraphs."""
    numbers = [f"{1 + number // 10}.{1 + number % 10}" for number in range(sections)]
    contents = "\n".join(f"    {number}. Title" for number in numbers)
    contents += "\n" + "\n".join(f"{number}. Title in {language}" for number in numbers)
    body = "\n\n".join(
        f"{number}. Title in {language}\n\n" + "\n\n".join([f"    {language} words of {number}. " * 20] * 6)
        for number in numbers
    )
    return f"Preface\n\n{contents}\n\n{body}\n"


def test_sections_are_found_below_their_headings_and_not_in_the_contents():
    found = sections_of(book("en"))
    assert len(found) == 40 and list(found)[0] == "1.1"
    assert found["1.1"].startswith("1.1. Title in en") and "words of 1.2" not in found["1.1"]
    pieces = documents_of(found["1.1"])
    assert len(pieces) > 1 and all(len(piece) <= LONGEST for piece in pieces)
    assert "\n\n".join(pieces) == found["1.1"]


def test_the_same_sections_are_held_out_in_every_language(tmp_path):
    write(tmp_path, {language: book(language, 40 if language != "zh" else 35) for language in LANGUAGES})
    found = {}
    for language in LANGUAGES:
        for side in ("train", "heldout"):
            lines = (tmp_path / language / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
            found[language, side] = {json.loads(line)["id"].split("-")[0] for line in lines}
    assert found["en", "train"] == found["de", "train"] == found["zh", "train"]
    held_out = found["en", "heldout"]
    assert held_out == found["zh", "heldout"] and held_out and all(map(is_held_out, held_out))
    assert not held_out & found["en", "train"] and len(held_out | found["en", "train"]) == 35  # of those that all have


def packed(folder, content_of) -> Path:
    """The three packages, each with the bytes `content_of(language)` as its text."""
    packages = folder / "packages"
    for language, name in LANGUAGES.items():
        content = folder / language / f"usr/share/debian-reference/debian-reference.{name}.txt.gz"
        content.parent.mkdir(parents=True)
        content.write_bytes(content_of(language))
        control = folder / language / "DEBIAN/control"
        control.parent.mkdir()
        control.write_text(
            f"Package: debian-reference-{name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
        )
        packages.mkdir(exist_ok=True)
        subprocess.run(
            ["dpkg-deb", "-b", folder / language, packages / f"debian-reference-{name}_1_all.deb"],
            check=True,
            capture_output=True,
        )
    return packages


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip", "txt.gz cannot be read (Not a gzipped file"),
        (gzip.compress(b"1.1. A\n" + b"\xff" * 300), "cannot be read ('utf-8' codec"),
        (gzip.compress(b"1.1. A\n" + b"x" * 300)[:20], "cannot be read (Compressed file ended"),
        (gzip.compress(b"nothing"), "no section is in all languages (0 of en, 0 of de, 0 of zh)"),
    ],
    ids=["no gzip", "no text", "cut", "no section"],  # bytes of gzip hold the time
)
def test_packages_without_a_text_to_learn_are_refused(commands, tmp_path, content, said):
    packages = packed(tmp_path, lambda _language: content)
    done = commands.run("tools/fetch_texts.py", "--packages", packages, "--output", tmp_path / "texts")
    assert_refused(done, said)
    assert not any((tmp_path / "texts").iterdir())
    done = commands.run(
        "tools/fetch_texts.py", "--packages", packages, "--output", packages / "debian-reference-de_1_all.deb"
    )
    assert_refused(done, "cannot be made a folder")


def test_packages_are_opened_and_what_is_none_is_refused(commands, tmp_path):
    packages = packed(tmp_path, lambda language: gzip.compress(book(language).encode()))
    done = commands.run("tools/fetch_texts.py", "--packages", packages, "--output", tmp_path / "texts")
    assert done.code == 0 and "texts/zh: train" in done.out, done.err
    (packages / "debian-reference-de_1_all.deb").write_bytes(b"no package")
    refused = commands.run("tools/fetch_texts.py", "--packages", packages, "--output", tmp_path / "again")
    assert_refused(refused, "debian-reference-de_1_all.deb", "download it again")
    assert_refused(
        commands.run("tools/fetch_texts.py", "--packages", tmp_path, "--output", tmp_path / "again"), "has no debian"
    )
