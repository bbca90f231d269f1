"""Data of the study: images of the demo corpus, a parallel text in three languages, and their mixture."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.system.errors import UserError
from tools.study.plan import TEXT_SHARE

LANGUAGES = ("en", "de", "zh")
VQ = "openmoji-64"


def check_demo(data: Path) -> None:
    """Check that `make demo` was run. Raises UserError."""
    for part in (
        "tokenizer/tokenizer.json",
        "shards/train/manifest.json",
        "shards/heldout/manifest.json",
        "corpus/heldout/folder",
    ):
        if not (data / part).exists():
            raise UserError(
                f"{data / part} is missing: run make demo first, which makes the pictures and the tokenizer"
            )


def preparation(data: Path, packages: Path | None) -> list[tuple[str, list[str], Path]]:
    """(name, command, file that is there when it is done) of every data preparation step; each can be repeated."""
    texts, shards = data / "texts", data / "texts" / "shards"
    fetch = ["tools/fetch_texts.py", "--output", str(texts), *(["--packages", str(packages)] if packages else [])]
    steps = [("texts", fetch, texts / LANGUAGES[-1] / "heldout.jsonl")]
    side = json.loads((data / "shards" / "train" / "manifest.json").read_text(encoding="utf-8"))["vq"]["image_size"]
    shard = ["tokenization/shard_images.py", "--vq", VQ, "--tokenizer", f"{data}/tokenizer", "--image-size", str(side)]
    for language in LANGUAGES:
        for side in ("train", "heldout"):
            output = shards / language / side
            inputs = ["--input", f"{language}={texts}/{language}/{side}.jsonl", "--output", str(output)]
            steps.append((f"{language} {side}", [*shard, *inputs], output / "manifest.json"))
    mixed = [f"{language}={texts}/{language}/heldout.jsonl" for language in LANGUAGES]
    output = data / "texts" / "heldout-mixed"
    inputs = ["--input", f"pictures={data}/corpus/heldout/folder", *mixed, "--output", str(output)]
    return [*steps, ("held-out mix", [*shard, *inputs], output / "manifest.json")]


def tokens_of(folder: Path) -> dict[str, int]:
    """Counts of a dataset folder's manifest."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["counts"]


def sources(data: Path) -> list[dict]:
    """Training sources, with weights that make text the paper's share of an epoch's tokens, a third from each language.

    A captioned picture is counted as its codes and one of its texts.
    """
    pictures = tokens_of(data / "shards" / "train")
    of_pictures = pictures["image_tokens"] + pictures["text_tokens"] / max(1, pictures["texts"]) * pictures["documents"]
    wanted = of_pictures * TEXT_SHARE / (1 - TEXT_SHARE) / len(LANGUAGES)
    mixed = [{"path": str(data / "shards" / "train"), "weight": 1.0}]
    for language in LANGUAGES:
        folder = data / "texts" / "shards" / language / "train"
        mixed.append({"path": str(folder), "weight": round(wanted / tokens_of(folder)["text_tokens"], 4)})
    return mixed


def fingerprints(data: Path) -> dict[str, str]:
    """Fingerprints of all datasets of the study, for comparing studies.

    Raises UserError for one that this code cannot read: once, and not in every cell.
    """
    from tokenization.shards import read_manifest

    folders = [data / "shards" / side for side in ("train", "heldout")]
    folders += [data / "texts" / "shards" / language / side for language in LANGUAGES for side in ("train", "heldout")]
    folders.append(data / "texts" / "heldout-mixed")
    found = {}
    for folder in folders:
        found[str(folder.relative_to(data))] = read_manifest(folder / "manifest.json")["fingerprint"]
    return found
