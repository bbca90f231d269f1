#!/usr/bin/env python
"""Train a small byte-level BPE text tokenizer on captions, with Qwen2.5's special tokens.

A base model brings its own tokenizer; this one is for models trained from scratch on a small corpus, where 151,665
ids would be almost all unused. Splitting and normalisation follow Qwen2.5 (NFC, digits one by one), and the ids of
special tokens come after the text, as in Qwen2.5.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from pretrain.system.errors import UserError, run_command
from pretrain.system.strict_json import from_json
from tokenization.files import output_folder, write_text

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
LARGEST = 1 << 20
"""More ids than any published tokenizer has; the trainer takes memory for all that are asked for."""
SMALLEST = 256 + len(SPECIAL_TOKENS)
# the pre-tokenizer pattern of Qwen2.5's tokenizer.json
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/train_tokenizer.py --captions work/corpus/train/folder/captions.jsonl "
        "--output work/tokenizer",
    )
    parser.add_argument(
        "--captions",
        "--input",
        dest="captions",
        nargs="+",
        required=True,
        metavar="PATH",
        help="JSONL files with caption or captions, or any input of shard_images.py that has texts",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=4096, help="ids in all, special ones included")
    arguments = parser.parse_args()
    if arguments.vocab_size < SMALLEST:
        size = arguments.vocab_size
        parser.error(f"--vocab-size must be at least {SMALLEST} (256 bytes and the special tokens), got {size}")
    if arguments.vocab_size > LARGEST:
        parser.error(f"--vocab-size is at most {LARGEST:,}, got {arguments.vocab_size}")
    return arguments


def read_captions(path: Path) -> list[str]:
    """Every caption of a JSONL file, without blank lines. Raises UserError with the line."""
    texts = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # not splitlines: captions may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            captions = captions_in(from_json(line))
            "".join(captions).encode("utf-8")  # half of a surrogate pair, which JSON can spell, has no bytes
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f" ({error})" if type(error) is ValueError else ""
            raise UserError(
                f"{path}, line {number}: no JSON object with caption (text) or captions (list of texts){why}"
            ) from None
        texts += captions
    return texts


def captions_in(record: Any) -> list[str]:
    """The captions of a record, as `document.captions_of` finds them, of which empty lists are none. Raises KeyError or
    TypeError."""
    if not isinstance(record, dict):
        raise TypeError("no object")
    key = "captions" if record.get("captions") is not None else "caption"
    captions = record[key]
    if key == "caption" and isinstance(captions, str):
        return [captions]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise TypeError("captions")
    return captions


def texts_of(path: Path | str) -> Iterator[str]:
    """Every text of a corpus, captions and turns too; a path or a URL. Of unreadable records the first of each reason is
    reported, and at the end their number by reason; keys that are not read are told."""
    if "://" not in str(path) and Path(path).suffix == ".jsonl" and _has_captions(Path(path)):
        yield from read_captions(Path(path))
        return
    from tokenization.readers import Document, open_corpus
    from tokenization.reject_counts import RejectCounts, example

    corpus, rejects = open_corpus(path), RejectCounts()
    print(corpus.describe(), file=sys.stderr)
    if odd := replace(corpus, unused="").warning():  # pictures have no text to learn
        print(f"warning: {odd}", file=sys.stderr)
    for file in corpus.files:
        with corpus.open(file) as opened:
            for _, item in corpus.read(opened, 0):
                if isinstance(item, Document):
                    yield from item.texts
                elif rejects.add(item):
                    print(f"warning: {example(item)}", file=sys.stderr)
    if rejects.counts:
        print(f"warning: {path}: of its documents {rejects.left_out()}", file=sys.stderr)


def _has_captions(path: Path) -> bool:
    """Whether the first record of a JSONL file has captions; true of a file without records, which is then reported."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(first, dict) or not first.keys() - {"id"} or bool(first.keys() & {"caption", "captions"})


def train(texts: Iterable[str], vocab_size: int):
    """Captions -> tokenizers.Tokenizer of at most `vocab_size` ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from model.prompts import DEFAULT_TEMPLATES

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    wordings = [*DEFAULT_TEMPLATES.text_to_image, *DEFAULT_TEMPLATES.image_to_text, DEFAULT_TEMPLATES.unconditional]
    tokenizer.train_from_iterator(chain(texts, wordings * 20), trainer)  # the prompts are in every document
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def main() -> int:
    """Train and save."""
    arguments = parse_arguments()
    texts = chain.from_iterable(map(texts_of, arguments.captions))
    first = next((text for text in texts if text.strip()), None)
    if first is None:
        raise UserError(
            f"{', '.join(map(str, arguments.captions))}: no text is there to learn from: give other --captions"
        )
    output_folder(arguments.output)
    tokenizer = train(chain([first], texts), arguments.vocab_size)
    written, text = arguments.output / "tokenizer.json", tokenizer.to_str(pretty=True)
    if written.exists() and written.read_bytes() != text.encode():
        raise UserError(
            f"{written}: is another tokenizer, and shards that it made need it: give another --output, or remove it"
        )
    write_text(written, text)
    size = tokenizer.get_vocab_size()
    fewer = f": the texts have no more, of {arguments.vocab_size:,} asked for" if size < arguments.vocab_size else ""
    print(f"{arguments.output}/tokenizer.json: {size} ids{fewer}")
    return 0


if __name__ == "__main__":
    run_command(main)
