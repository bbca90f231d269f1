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
from itertools import chain

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
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
        type=Path,
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
    return arguments


def read_captions(path: Path) -> list[str]:
    """Every caption of a JSONL file, without blank lines. Raises UserError with the line."""
    texts = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: captions may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            captions = record["captions"] if "captions" in record else [record["caption"]]
        except (ValueError, KeyError, TypeError):
            captions = None
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(f"{path}, line {number}: no JSON object with caption (text) or captions (list of texts)")
        texts += captions
    return texts


def texts_of(path: Path) -> Iterator[str]:
    """Every text of a corpus, captions and turns too. Of unreadable records the first of each reason is reported, and at
    the end their number by reason."""
    if path.suffix == ".jsonl" and _has_captions(path):
        yield from read_captions(path)
        return
    from tokenization.readers import Document, open_corpus
    from tokenization.reject_counts import RejectCounts, example

    corpus, rejects = open_corpus(path), RejectCounts()
    print(corpus.describe(), file=sys.stderr)
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
        with open(path, encoding="utf-8") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError):
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
    tokenizer = train(chain([first], texts), arguments.vocab_size)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output / "tokenizer.json", tokenizer.to_str(pretty=True))
    size = tokenizer.get_vocab_size()
    fewer = f": the texts have no more, of {arguments.vocab_size:,} asked for" if size < arguments.vocab_size else ""
    print(f"{arguments.output}/tokenizer.json: {size} ids{fewer}")
    return 0


if __name__ == "__main__":
    run_command(main)
