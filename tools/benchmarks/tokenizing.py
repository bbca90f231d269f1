#!/usr/bin/env python
"""Benchmark of tokenization in images per second: shard_images' loop, the bare encoder, and a loop of one image at a
time.

The three take turns, several rounds: the encoder alone on random tensors of the same shape; our job on WebDataset tars
of JPEGs; and a plain loop that decodes, encodes a batch of one and writes a JSON line with the codes as text. Bytes a
sample are compared too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import io
import json
import statistics
import tempfile
import time
from typing import Any

from pretrain.system.errors import run_command

CHAMELEON = {
    "block_out_channels": [128, 128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "layers_per_block": 2,
    "latent_channels": 256,
    "num_vq_embeddings": 8192,
    "sample_size": 512,
}
"""The configuration of Chameleon's image tokenizer, whose weights are random here: speed does not depend on them."""
CAPTION = "a picture of nothing in particular, with colours that run into each other from left to right, " * 2


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/tokenizing.py --vq openmoji-64 --pictures 500 --rounds 3",
    )
    add = parser.add_argument
    add("--vq", default="openmoji-64", help="a name, a folder, or chameleon-512: full size, random weights")
    add("--pictures", type=int, default=500, help="pictures a round (default: %(default)s)")
    add("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="as for shard_images.py (default: %(default)s)")
    add("--workers", type=int, default=2, help="as for shard_images.py (default: %(default)s)")
    add("--device", default="cpu", help="where the image tokenizer runs (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()

    from tokenization.parts import mds_writer

    mds_writer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vq, tokenizer = tokenizers(arguments, folder)
        tars = make_tars(folder / "tars", arguments.pictures, vq.image_size)
        seconds: dict[str, list[float]] = {"encoder alone": [], "our job": [], "one at a time": []}
        busy, sizes = [], {}
        bare(vq, arguments.batch_size, arguments.batch_size)  # warm
        for number in range(arguments.rounds):
            seconds["encoder alone"].append(bare(vq, arguments.pictures, arguments.batch_size))
            output = folder / f"shards-{number}"
            took, share = job(arguments, tars, output, vq, tokenizer)
            seconds["our job"].append(took)
            busy.append(share)
            sizes["our job"] = sum(path.stat().st_size for path in output.rglob("*.mds"))
            seconds["one at a time"].append(one_at_a_time(tars, folder / "codes.jsonl", vq))
            sizes["one at a time"] = (folder / "codes.jsonl").stat().st_size
        for what, values in seconds.items():
            rates = sorted(arguments.pictures / value for value in values)
            line = f"{what}: {statistics.median(rates):.2f} pictures/s ({rates[0]:.2f} to {rates[-1]:.2f})"
            if what in sizes:
                line += f", {sizes[what] / arguments.pictures:,.0f} bytes a sample"
            print(line + (f", encoder busy {statistics.median(busy):.1%}" if what == "our job" else ""))
        ratio = [alone / ours for alone, ours in zip(seconds["encoder alone"], seconds["our job"], strict=True)]
        print(f"our job by the encoder alone, round by round: {', '.join(f'{value:.3f}' for value in ratio)}")
    return 0


def tokenizers(arguments: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """The image tokenizer, and a small text tokenizer whose ids per caption are about Qwen's."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from tokenization.text_tokenizer import load_text_tokenizer
    from tokenization.vq import load_vq
    from tokenization.vq_chameleon import ChameleonVQ

    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text.train_from_iterator(
        [CAPTION] * 9, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    )
    text.save(str(folder / "tokenizer.json"))
    if arguments.vq != "chameleon-512":
        return load_vq(arguments.vq, device=arguments.device), load_text_tokenizer(folder)
    from pretrain.system.light_imports import vq_model

    torch.manual_seed(0)
    model = vq_model()(**CHAMELEON)
    return ChameleonVQ(model, name="chameleon-512", device=arguments.device), load_text_tokenizer(folder)


def make_tars(folder: Path, count: int, side: int) -> Path:
    """Write JPEGs a quarter larger than the tokenizer's images, with captions, in tars of at most 1,000."""
    import tarfile

    import numpy
    from PIL import Image

    folder.mkdir()
    generator = numpy.random.default_rng(0)
    for start in range(0, count, 1000):
        with tarfile.open(folder / f"{start:06d}.tar", "w") as archive:
            for number in range(start, min(start + 1000, count)):
                noise = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=numpy.uint8))
                buffer = io.BytesIO()
                noise.resize((side * 5 // 3, side * 5 // 4), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                for name, data in ((f"{number}.jpg", buffer.getvalue()), (f"{number}.txt", CAPTION.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


def bare(vq, pictures: int, batch_size: int) -> float:
    """Seconds to encode random tensors."""
    import torch

    pixels = torch.rand(batch_size, 3, vq.image_size, vq.image_size) * 2 - 1
    began = time.monotonic()
    for start in range(0, pictures, batch_size):
        vq.encode_pixels(pixels[: min(batch_size, pictures - start)])
    return time.monotonic() - began


def job(arguments: argparse.Namespace, tars: Path, output: Path, vq, tokenizer) -> tuple[float, float]:
    """Seconds of shard_images' loop after start-up, and the encoder's busy share of them."""
    from tokenization.encode import RejectLimit, Stopwatch
    from tokenization.encode_files import encode_files
    from tokenization.job import describe_job
    from tokenization.manifest import finish_dataset
    from tokenization.parts import FileRecord, read_file_record
    from tokenization.pipeline import Preparation
    from tokenization.readers import open_corpora
    from tokenization.worker_plan import listed

    corpora = open_corpora([str(tars)])
    files = listed(corpora)
    (output / "parts").mkdir(parents=True)
    watch = Stopwatch()
    preparation, limit = Preparation(tokenizer, vq.image_size, picture_seconds=60), RejectLimit(0.1)
    encode_files(output, files, 8192, preparation, vq, arguments.batch_size, arguments.workers, watch, limit, print)
    records = [cast(FileRecord, read_file_record(output, work.number)) for work in files]  # all are done
    finish_dataset(output, describe_job(corpora, vq, tokenizer, vq.image_size, 8192), records)
    seconds = watch.elapsed()
    return seconds, watch.seconds["encoding"] / seconds


def one_at_a_time(tars: Path, output: Path, vq) -> float:
    """Seconds of a loop that decodes an image, encodes it alone, and writes its codes as text."""
    from tokenization.preprocess import open_image, preprocess
    from tokenization.readers import Document, open_corpus

    corpus = open_corpus(tars)
    began = time.monotonic()
    with open(output, "w", encoding="utf-8") as lines:
        for file in corpus.files:
            with corpus.open(file) as opened:
                for _, item in corpus.read(opened, 0):
                    document = cast(Document, item)
                    picture = preprocess(open_image(cast(Path | bytes, document.pictures[0].data)), vq.image_size)
                    codes = vq.encode([picture])[0].reshape(-1).tolist()
                    record = {"id": document.id, "caption": document.texts[0], "vqcode": json.dumps(codes)}
                    lines.write(json.dumps(record) + "\n")
    return time.monotonic() - began


if __name__ == "__main__":
    run_command(main)
