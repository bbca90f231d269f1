#!/usr/bin/env python
"""Mutate pictures, tars, Parquet, Arrow, JSON and text files and folders of pairs; each is accepted or rejected with a reason.

Every input goes the way that shard_images goes: detection, scan, reading, decoding, preprocessing. A process of its own
does the work, so that a crash of a decoder or a hang is seen and the trial goes on after it.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import io
import json
import os
import random
import tempfile
import time
import warnings
from collections import Counter

from pretrain.system.errors import UserError, run_command
from tests.tokenization.fuzz_folders import (
    JSON_ARROW,
    JSON_PARQUET,
    JSON_VALUES,
    PAIRS,
    folder_seed,
    json_columns,
    linked_tar,
    mutated_folder,
    mutated_values,
    pictures_in,
    sparse_tar,
    write_folder,
)

SECONDS = 60
"""A single input that takes longer counts as a hang."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tests/tokenization/fuzz_readers.py --inputs 500",
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="mutated inputs in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    return parser.parse_args()


def main() -> int:
    """Run the trial; exit code 1 if an input crashed, hung, or raised what is not a rejection."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures, seconds = fuzz(Path(folder), arguments.inputs, arguments.seed)
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind}: {', '.join(f'{what} {count:,}' for what, count in counts.most_common())}")
    for failure in failures[:20]:
        print(f"FAILED: {failure}")
    print(
        f"{'FAILED' if failures else 'PASSED'}: {arguments.inputs:,} inputs, {len(failures)} failures, {seconds:.0f} s"
    )
    return 1 if failures else 0


def fuzz(folder: Path, inputs: int, seed: int) -> tuple[dict[str, Counter[str]], list[str], float]:
    """What became of the mutated inputs of each kind, failures in words, and the seconds that it took."""
    seeds = sound_inputs(folder)
    began, outcomes, failures, number = time.monotonic(), {name: Counter() for name in seeds}, [], 0
    while number < inputs:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            _child(folder, seeds, number, inputs, seed, writing)
        os.close(writing)
        number = _listen(reading, process, number, seeds, outcomes, failures)
    return outcomes, failures, time.monotonic() - began


def _child(folder: Path, seeds: dict[str, bytes], first: int, inputs: int, seed: int, pipe: int) -> None:
    """Try one input after the other; tell of each before (a number) and after (an outcome)."""
    warnings.filterwarnings("ignore")
    code = 70
    try:
        for number in range(first, inputs):
            name, data = mutant(seeds, number, seed)
            os.write(pipe, f"{number}\n".encode())
            try:
                outcome = attempt(folder, name, data)
            except Exception as error:
                outcome = f"!{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            os.write(pipe, (outcome + "\n").encode("utf-8", "backslashreplace"))
        code = 0
    finally:
        os._exit(code)


def _listen(pipe: int, process: int, number: int, seeds, outcomes, failures: list[str]) -> int:
    """Take what the child tells until it ends. Returns the number of the input that is next."""
    import select
    import signal

    names = list(seeds)
    buffer, expects_outcome, current = b"", False, number
    with open(pipe, "rb", buffering=0) as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], SECONDS)
            chunk = stream.read(1 << 16) if ready else b""
            if not chunk:
                break
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                if not expects_outcome:
                    current, expects_outcome = int(line), True
                    continue
                expects_outcome, number = False, current + 1
                text = line.decode()
                if text.startswith("!"):
                    failures.append(f"input {current} ({names[current % len(names)]}): {text[1:]}")
                    text = "FAILED"
                outcomes[names[current % len(names)]][text] += 1
    if not ready:
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    if expects_outcome:
        what = f"more than {SECONDS} s" if not ready else f"the process ended with status {status}"
        failures.append(f"input {current} ({names[current % len(names)]}): {what}")
        return current + 1
    return number


def attempt(folder: Path, name: str, data: bytes) -> str:
    """`accepted`, or the reason of the first rejection. Any exception is a failure."""
    from tokenization.filters import Filters
    from tokenization.pipeline import Preparation
    from tokenization.preprocess import RejectedImage, open_image, preprocess
    from tokenization.readers import DamagedFile, Reject, damaged, open_corpus

    if "." not in name:  # a picture
        try:
            preprocess(open_image(data), 32)
        except RejectedImage as bad:
            return bad.reason
        return "accepted"
    path = folder / name
    if name == PAIRS:
        write_folder(path, data)
    else:
        path.write_bytes(data)
    try:
        corpus = open_corpus(path)
    except UserError as error:
        assert "\n" not in str(error), f"not one line: {error}"
        return "refused"
    preparation = Preparation(None, 32, Filters(duplicate_bits=3))
    if name == PAIRS:
        return attempt_pairs(path, corpus, preparation)
    with corpus.open(corpus.files[0]) as opened:
        try:
            records, _ = corpus.scan(opened)
        except DamagedFile as damage:
            return damaged(opened.name, corpus.source, damage).reason
        found = []
        for number, item in corpus.read(opened, 0):
            found.append(number)
            decoded = preparation.decode(item)[0]
            if isinstance(decoded, Reject):
                decoded.as_json().encode()
                assert decoded.reason.isidentifier() and decoded.detail
                return decoded.reason
            json.dumps([decoded.id, *decoded.texts], ensure_ascii=False).encode()
        assert found == sorted(set(found)) and len(found) <= records, f"{records} records, and {found[-3:]} read"
    return "accepted"


def attempt_pairs(path: Path, corpus, preparation) -> str:
    """`accepted`, or the reason of the first rejection, after all is read: of a folder of pairs each picture is one or the other."""
    from tokenization.readers import Document, Reject
    from tokenization.readers.pairs import is_picture

    if corpus.format.name != "pictures and texts of one name":
        assert corpus.unused != "" or not pictures_in(path), f"pictures beside {corpus.format.name} are not told"
        return "other format"
    read, reasons = 0, []
    for file in corpus.files:
        with corpus.open(file) as opened:
            records, _ = corpus.scan(opened)
            items = [item for _, item in corpus.read(opened, 0)]
            assert len(items) == records, f"{records} records, and {len(items)} read"
        for item in items:
            decoded = preparation.decode(item)[0]
            read += isinstance(item, Document) or is_picture(item.file)
            if isinstance(decoded, Reject):
                assert decoded.reason.isidentifier() and decoded.detail
                reasons.append(decoded.reason)
    assert read == pictures_in(path), f"{pictures_in(path)} pictures, and {read} told of"
    return reasons[0] if reasons else "accepted"


def mutant(seeds: dict[str, bytes], number: int, seed: int) -> tuple[str, bytes]:
    """Name and bytes of mutated input `number`, the same each time."""
    dice = random.Random(f"{seed}:{number}")
    names = list(seeds)
    name = names[number % len(names)]
    if name == PAIRS:
        return name, mutated_folder(seeds[name], dice, mutated)
    if name in (JSON_PARQUET, JSON_ARROW) and dice.random() < 0.7:  # what is in the columns, in a sound file
        from tests.tokenization.corpora import picture

        return name, json_columns(name, mutated_values(dice, mutated), [picture(seed) for seed in range(4)])
    return name, mutated(seeds[name], dice)


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """Bytes with a few changes."""
    data = bytearray(seed)
    for _ in range(dice.choice([1, 1, 2, 4, 16])):
        if not data:
            break
        at = dice.randrange(len(data))
        how = dice.randrange(7)
        if how == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            data[at] = dice.choice([0, 0xFF, 0x7F, 0x80, dice.randrange(256)])
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + dice.randrange(1, 64)]
        elif how == 4:
            data[at:at] = dice.randbytes(dice.randrange(1, 64))
        elif how == 5:
            other = dice.randrange(len(data))
            data[at : at + 32] = data[other : other + 32]
        else:
            data[at : at + 4] = dice.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            )
    return bytes(data)


def sound_inputs(folder: Path) -> dict[str, bytes]:
    """An input of each kind. Names with a suffix are files of a corpus, the others are pictures."""
    from PIL import Image

    from tests.tokenization import kinds
    from tests.tokenization.corpora import captions, parquet_corpus, picture, tar

    def encoded(mode: str, file_format: str, **options) -> bytes:
        buffer = io.BytesIO()
        image = Image.open(io.BytesIO(picture(1, 40))).convert(mode)
        image.save(buffer, file_format, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = [Image.open(io.BytesIO(picture(seed, 40))) for seed in range(3)]
    inputs = {
        "png_rgb": encoded("RGB", "PNG"),
        "png_palette": encoded("P", "PNG"),
        "png_16_bit": encoded("I;16", "PNG"),
        "png_alpha": encoded("RGBA", "PNG", exif=exif),
        "jpeg": encoded("RGB", "JPEG", exif=exif),
        "jpeg_cmyk": encoded("CMYK", "JPEG"),
        "jpeg_progressive": encoded("RGB", "JPEG", progressive=True),
        "gif_animated": encoded("RGB", "GIF", save_all=True, append_images=frames),
        "webp": encoded("RGBA", "WEBP", exif=exif),
        "webp_animated": encoded("RGB", "WEBP", save_all=True, append_images=frames),
        "tiff_lzw": encoded("RGB", "TIFF", compression="tiff_lzw"),
        "tiff_cmyk": encoded("CMYK", "TIFF"),
        "bmp": encoded("RGB", "BMP"),
        "ppm": encoded("RGB", "PPM"),
        "jpeg2000": encoded("RGB", "JPEG2000"),
    }
    members = [("a.png", picture(0)), ("a.txt", b"a cat"), ("b.jpg", inputs["jpeg"]), ("b.json", b'{"caption": "b"}')]
    inputs["tar.tar"] = tar(folder / "sound.tar", members).read_bytes()
    inputs["captions.parquet"] = parquet_corpus(folder / "sound.parquet", 4, as_struct=True).read_bytes()
    for name, table in (("fine", kinds.finevision), ("edits", kinds.bagel), ("ordered", kinds.in_order)):
        inputs[f"{name}.parquet"] = kinds.parquet(folder / "sound.parquet", table()).read_bytes()
        saved = kinds.saved_to_disk(folder / name, table())
        inputs[f"{name}.arrow"] = (saved / "data-00000-of-00002.arrow").read_bytes()
    lines = [{"text": text} for text in captions(2)] + [{"text": "x" * 100, "id": 7}]
    inputs["text.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    inputs["turns.jsonl"] = "".join(json.dumps(line) + "\n" for line in kinds.LLAVA[2:] * 3).encode()
    inputs["turns.json"] = json.dumps(kinds.LLAVA, indent=1).encode()
    inputs["text.txt"] = "one\n<|endoftext|>\nzwei ü\n".encode()
    for name in "ab":
        (folder / f"{name}.png").write_bytes(picture(0))
    inputs[PAIRS] = folder_seed(inputs["jpeg"], picture(0))
    for name in (JSON_PARQUET, JSON_ARROW):
        inputs[name] = json_columns(name, JSON_VALUES, [picture(seed) for seed in range(4)])
    inputs["sparse_gnu.tar"] = sparse_tar(folder, picture(0), "gnu")
    inputs["sparse_pax.tar"] = sparse_tar(folder, picture(0), "pax")
    inputs["linked.tar"] = linked_tar(picture(0))
    return inputs


if __name__ == "__main__":
    run_command(main)
