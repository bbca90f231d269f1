"""The two inspectors: what an input holds, and shards and rows as pictures and text again."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData, config_values
from tests.tokenization import kinds
from tests.tokenization.corpora import folder_corpus, jsonl, picture, shaped_corpus
from tests.tokenization.store import serving
from tokenization.readers import open_corpus
from tokenization.shards import open_dataset
from tokenization.vq import load_vq
from tools.inspection.codebook_use import codebook_statistics, conditional_entropy, shape_statistics, token_statistics
from tools.inspection.corpus import look


def pictures_of(page: str) -> list[tuple[str, numpy.ndarray]]:
    """CSS class and pixels of every picture of a page."""
    found = re.findall(r'<img class="([a-z]*)"[^>]*base64,([^"]+)"', page)
    return [(css, numpy.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for css, data in found]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    captions = folder_corpus(folder / "captions", 30)
    (captions / "images/004.png").write_bytes(b"no picture")
    return [
        captions,
        kinds.llava(folder / "llava", as_list=True),
        kinds.parquet(folder / "edits.parquet", kinds.bagel()),
        kinds.saved_to_disk(folder / "ordered", kinds.in_order()),
        jsonl(folder / "text.jsonl", [{"text": "<b>words</b> & more"}] * 3),
    ]


@pytest.fixture(scope="module")
def shards(commands: CommandServer, tiny_data: TinyData, inputs: list[Path], tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "all"
    done = commands.run(
        "tokenization/shard_images.py",
        "--input",
        *inputs,
        "--output",
        output,
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
        "--max-rejects",
        0.2,
    )
    assert done.code == 0, done.err
    return output


def test_an_input_of_which_nothing_can_be_used_is_an_error(commands: CommandServer, tmp_path: Path):
    path = jsonl(tmp_path / "in.jsonl", [{"image": f"{number}.png", "caption": "x"} for number in range(12)])
    done = commands.run("tools/inspect_data.py", "--input", path, "--output", tmp_path / "page")
    assert done.code == 1 and "rejected as missing_file: 0.png" in done.out
    assert f"error: next to nothing can be used of {path} (0 of 12)" in done.err
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "in.parquet")
    done = commands.run("tools/inspect_data.py", "--input", tmp_path / "in.parquet", "--output", tmp_path / "page")
    assert done.code == 1 and "in.parquet (0 of 0)" in done.err


def test_an_input_is_shown_as_it_was_understood(commands: CommandServer, inputs: list[Path], tmp_path: Path):
    done = commands.run("tools/inspect_data.py", "--input", *inputs, "--output", tmp_path, "--image-size", 32)
    assert done.code == 0, done.err
    assert "mix.json: JSON list, conversations, 1 file" in done.out
    assert "documents looked at: 30" in done.out and "rejected: 1 (3.3%) not_a_picture 1" in done.out
    assert "shorter side of a picture, pixels: 24 to 24, median 24" in done.out and "formats: PNG RGB 29" in done.out
    page = (tmp_path / "index.html").read_text()
    assert "&lt;b&gt;words&lt;/b&gt; &amp; more" in page and "not_a_picture" in page
    assert all(word in page for word in ("paint it red", "What is this, and", "Once", "A cat, a dog."))
    assert len(pictures_of(page)) == 20 + 3 + 5 + 4 + 2  # 20 captions, what the others have, and two sheets
    assert Image.open(tmp_path / "contact_sheet.png").width > 200


def test_what_would_be_cut_is_told_and_shown(commands: CommandServer, tmp_path: Path):
    """A banner of 3:1 of which the middle third is black: squares keep that alone, shapes all of it."""
    (tmp_path / "in").mkdir()
    banner = Image.new("RGB", (180, 60), "lime")
    banner.paste("black", (60, 0, 120, 60))
    banner.save(tmp_path / "in/a.png")
    jsonl(tmp_path / "in/captions.jsonl", [{"image": "a.png", "caption": "a banner"}])
    words = [
        "tools/inspect_data.py",
        "--input",
        tmp_path / "in",
        "--image-size",
        64,
        "--pixels-per-code",
        8,
        "--output",
    ]
    seen = {}
    for shapes, fit, told in (
        ("square", "crop", "cut off a picture, share of the area, --shapes as asked: median 66.7%, most 66.7%"),
        (
            "aspect",
            "crop",
            "the same with --shapes square: median 66.7%, most 66.7%, mean 66.7%; over 25% of 1 of 1 pictures",
        ),
        ("3:1", "pad", "white laid beside it, share of the area, --shapes as asked: median 13."),
    ):
        done = commands.run(*words, tmp_path / shapes, "--shapes", shapes, "--fit", fit)
        assert done.code == 0 and told in done.out, done.out + done.err
        sheet = numpy.asarray(Image.open(tmp_path / shapes / "cut_sheet.png").convert("RGB"))
        seen[shapes] = {
            name: int((sheet == colour).all(-1).sum()) for name, colour in (("lime", (0, 255, 0)), ("black", (0, 0, 0)))
        }
        veiled = (abs(sheet.astype(int) - (153, 140, 38)).max(-1) < 3).sum()
        assert (veiled > 2000) == (shapes == "square")
    assert seen["square"]["lime"] < 100 and seen["square"]["black"] > 1500  # of 43 x 43
    assert seen["aspect"]["lime"] > 2800 and seen["3:1"]["lime"] > 3000  # of 2 x 43 x 43
    assert "shapes, rows*columns of codes: 5*13 1" in commands.run(*words, tmp_path / "again", "--shapes", "aspect").out
    done = commands.run(*words, tmp_path / "odd", "--shapes", "aspect", "--image-size", 60)
    assert done.code == 2 and "--image-size must be a multiple of --pixels-per-code 8" in done.err


def test_shapes_of_a_dataset_are_counted(commands: CommandServer, tiny_data: TinyData, tmp_path: Path):
    done = commands.run(
        "tokenization/shard_images.py",
        "--input",
        shaped_corpus(tmp_path / "in"),
        "--output",
        tmp_path / "out",
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
        "--shapes",
        "4:3,3:4,3:1",
    )
    assert done.code == 0, done.err
    dataset = open_dataset(tmp_path / "out")
    shapes = shape_statistics(dataset)
    assert [line[0] for line in shapes] == ["4*4", "3*4", "4*3", "2*6"] and sum(line[1] for line in shapes) == 11
    done = commands.run(
        "tools/inspect_shards.py", "--shards", tmp_path / "out", "--vq", tiny_data.vq, "--output", tmp_path / "page"
    )
    assert "pictures by shape: " + ", ".join(f"{word} {count}" for word, count, _ in shapes) in done.out, done.err
    assert len(pictures_of((tmp_path / "page/index.html").read_text())) == 11


def test_documents_are_looked_at_all_over_an_input(tmp_path: Path):
    folder = tmp_path / "many"
    for number in range(20):
        jsonl(folder / f"{number:02d}.jsonl", [{"text": f"{number} {line}"} for line in range(9)])
    found = look(open_corpus(folder), 16, 32)
    assert [document.texts[0] for document, _ in found.documents] == [
        f"{number} {line}" for number in (0, 2, 5, 7, 10, 12, 15, 17) for line in (0, 1)
    ]


def test_samples_come_back_as_pictures_and_text(
    commands: CommandServer, tiny_data: TinyData, shards: Path, tmp_path: Path
):
    dataset = open_dataset(shards)
    edit = next(number for number, found in enumerate(dataset) if found["kind"] == "edit")
    done = commands.run(
        "tools/inspect_shards.py",
        "--shards",
        shards,
        "--vq",
        tiny_data.vq,
        "--samples",
        0,
        edit,
        "--verify",
        "--output",
        tmp_path,
    )
    assert done.code == 0, done.err
    assert "sound: 6 shards" in done.out and "captions: 29 documents, 464 image tokens" in done.out
    page = (tmp_path / "index.html").read_text()
    vq = load_vq(tiny_data.vq)
    expected = [codes for number in (0, edit) for codes in dataset[number]["codes"].reshape(-1, 1, 4, 4)]
    shown = pictures_of(page)
    assert len(shown) == len(expected) == 4
    for (_, pixels), codes in zip(shown, expected):
        assert numpy.array_equal(pixels, numpy.asarray(vq.decode(codes)[0]))
    assert "picture 0" in page and "paint it red" in page and "not_a_picture" in page


def test_a_url_shows_what_the_folder_shows(commands: CommandServer, tiny_data: TinyData, shards: Path, tmp_path: Path):
    words = ["--vq", tiny_data.vq, "--samples", 0, 31, "--verify", "--output"]
    with serving(shards) as store:
        done = commands.run("tools/inspect_shards.py", "--shards", store.url, *words, tmp_path / "none")
        assert_refused(done, store.url, "--cache")
        done = commands.run(
            "tools/inspect_shards.py", "--shards", store.url, "--cache", tmp_path / "cache", *words, tmp_path / "url"
        )
    assert done.code == 0, done.err
    assert commands.run("tools/inspect_shards.py", "--shards", shards, *words, tmp_path / "folder").code == 0
    pages = [
        (tmp_path / name / "index.html").read_text().replace(str(where), "")
        for name, where in (("url", store.url), ("folder", shards))
    ]
    assert pages[0] == pages[1]


def test_what_is_left_out_of_training_is_said(
    commands: CommandServer, tiny_data: TinyData, inputs: list[Path], tmp_path: Path
):
    """The editing pictures and those of the conversations are among the captioned ones."""
    done = commands.run(
        "tokenization/shard_images.py",
        "--input",
        *inputs,
        "--output",
        tmp_path / "shards",
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
        "--duplicate-bits",
        0,
        "--max-rejects",
        0.2,
    )
    assert done.code == 0, done.err
    left_out = open_dataset(tmp_path / "shards").lengths.left_out().tolist()
    done = commands.run(
        "tools/inspect_shards.py",
        "--shards",
        tmp_path / "shards",
        "--vq",
        tiny_data.vq,
        "--samples",
        0,
        left_out[0],
        "--output",
        tmp_path / "page",
    )
    assert f"{len(left_out)} documents are left out of training" in done.out
    page = (tmp_path / "page/index.html").read_text()
    assert f"repeat pictures of other files: {', '.join(map(str, left_out))}</p>" in page
    assert page.count(", left out of training<") == 1


def test_rows_are_shown_with_what_is_learned(
    commands: CommandServer, tiny_data: TinyData, shards: Path, tmp_path: Path
):
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.process_ranks import ProcessRanks

    values = config_values(tiny_data, tmp_path / "run")
    values["data"] |= {"sources": [{"path": str(shards)}], "sequence_length": 512, "code_noise": 0.0}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    rows = Data(load_config(tmp_path / "run.yaml", []), ProcessRanks()).train
    numbers = range(next(n for n in range(100) if rows.plan.epoch_of(n)))
    words = ("--config", tmp_path / "run.yaml", "--rows", 10**12, "--output", tmp_path / "page")
    assert_refused(commands.run("tools/inspect_shards.py", *words), f"--rows {10**12}: the run has ")
    done = commands.run(
        "tools/inspect_shards.py", "--config", tmp_path / "run.yaml", "--rows", *numbers, "--output", tmp_path / "page"
    )
    assert done.code == 0, done.err
    page = html.unescape((tmp_path / "page/index.html").read_text())
    pieces = [piece for number in numbers for piece in rows.plan.row(number)]
    samples = [rows.datasets[piece.source][piece.document] for piece in pieces]
    assert len(samples) == len(rows.datasets[0]) and all(sample["id"] in page for sample in samples)
    learned = [css == "learned" for css, _ in pictures_of(page)]
    expected: list[bool] = []
    for piece, sample in zip(pieces, samples):
        pictures = len(sample["grids"]) // 2
        if sample["kind"] == "caption_pair":
            expected.append(piece.task != 2)
        elif sample["kind"] == "edit":
            expected += [False, *[True] * (pictures - 1)]
        else:
            expected += [sample["kind"] == "interleaved"] * pictures
    assert learned == expected and any(learned) and not all(learned)
    texts = re.findall(r'<span class="text ([a-z]*)">([^<]*)</span>', (tmp_path / "page/index.html").read_text())
    in_answers = "".join(text for css, text in texts if css == "learned")
    in_questions = "".join(text for css, text in texts if not css)
    for said in ("A cat, a dog.", "None.", "That.", "Hello"):
        assert said in in_answers
    for asked in ("What is this, and", "Which is red?", "Be kind.", "smaller"):
        assert asked in in_questions and asked not in in_answers


def test_wrong_use(commands: CommandServer, tiny_data: TinyData, shards: Path, tmp_path: Path):
    done = commands.run("tools/inspect_shards.py", "--shards", shards, "--vq", tiny_data.other_vq, "--output", tmp_path)
    assert_refused(done, "the shards were made with the VQ model 'tiny-0'")
    done = commands.run(
        "tools/inspect_shards.py", "--shards", shards, "--vq", tiny_data.vq, "--samples", 99, "--output", tmp_path
    )
    assert_refused(done, "--samples 99", "has documents 0 to")
    assert commands.run("tools/inspect_shards.py", "--output", tmp_path).code == 2
    for more in (("--rows", 3), ("--set", "a=b"), ("--codebook-documents", 0)):
        words = ("--shards", shards, "--vq", tiny_data.vq, "--output", tmp_path / "page", *more)
        done = commands.run("tools/inspect_shards.py", *words)
        assert done.code == 2 and more[0] in done.err.splitlines()[-1], done.err
    for option in ("--verify", "--samples=0"):
        done = commands.run("tools/inspect_shards.py", "--config", "a.yaml", option, "--output", tmp_path / "page")
        assert done.code == 2 and f"{option[:8]}" in done.err and "is of --shards: leave it out" in done.err
    values = config_values(tiny_data, tmp_path / "run")
    values["data"] |= {"sources": [{"path": str(shards)}], "sequence_length": 512}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    words = ("--config", tmp_path / "run.yaml", "--vq", tiny_data.other_vq, "--output", tmp_path / "page")
    assert_refused(commands.run("tools/inspect_shards.py", *words), "the shards were made with the VQ model 'tiny-0'")
    assert not (tmp_path / "page").exists()
    done = commands.run("tools/inspect_data.py", "--input", tmp_path / "nowhere", "--output", tmp_path)
    assert_refused(done, "nowhere: no such file or folder")
    with pytest.raises(UserError):
        open_corpus(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(picture(1))
        (tmp_path / "in" / name).with_suffix(".txt").write_text("x")
    done = commands.run("tools/inspect_data.py", "--input", tmp_path / "in", "--output", tmp_path / "in/page")
    assert_refused(done, "in/page: lies in the input")
    size = ("--image-size", 100_000)
    done = commands.run("tools/inspect_data.py", "--input", tmp_path / "in", "--output", tmp_path / "page", *size)
    assert_refused(done, "--image-size 100000: is larger than any picture that is read")


def test_statistics_per_source(shards: Path):
    dataset = open_dataset(shards)
    lines = {line[0]: line for line in token_statistics(dataset)}
    documents = [found for found in dataset if found["source"] == "captions"]
    tokens = [len(found["text_ids"]) + 16 for found in documents]
    assert lines["captions"][1:4] == (29, 29, 29 * 16) and lines["captions"][8] == max(tokens)
    assert (
        lines["text"][2] == 0 and sum(line[5] for line in lines.values()) == dataset.manifest["counts"]["text_tokens"]
    )
    codes = numpy.concatenate([found["codes"] for found in documents])
    found = {line[0]: line for line in codebook_statistics(dataset, 1000)}
    share = numpy.bincount(codes) / len(codes)
    entropy = -(share[share > 0] * numpy.log2(share[share > 0])).sum()
    assert found["captions"][2] == len(set(codes.tolist())) and found["captions"][4] == pytest.approx(entropy)
    assert "text" not in found


def test_entropies_of_known_processes():
    generator = numpy.random.default_rng(0)
    noise = [generator.integers(0, 4, 50) for _ in range(400)]
    assert conditional_entropy(noise, 0, 4) == pytest.approx(2, abs=0.01)
    assert conditional_entropy(noise, 1, 4) == pytest.approx(2, abs=0.01)
    cycle = [numpy.arange(start, start + 50) % 4 for start in range(4)]
    assert conditional_entropy(cycle, 0, 4) == pytest.approx(2, abs=0.01) and conditional_entropy(
        cycle, 1, 4
    ) == pytest.approx(0)
    assert conditional_entropy([numpy.zeros(2, numpy.int64)], 2, 4) == 0
