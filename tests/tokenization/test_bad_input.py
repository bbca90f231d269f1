"""Bad input to shard_images: put aside with a reason while the job goes on, or one line and the right exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tokenization.corpora import (
    Command,
    contents,
    error_line,
    folder_corpus,
    jsonl,
    picture,
    rejects_of,
    tar,
    tar_corpus,
)
from tests.tokenization.test_preprocess import bomb
from tokenization.shards import open_dataset


def append(folder: Path, *records: object) -> None:
    """Add lines to the corpus' captions.jsonl."""
    path = folder / "captions.jsonl"
    jsonl(path, [*path.read_bytes().splitlines(), *records])


def test_every_bad_document_is_put_aside_with_its_reason(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 30)
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "PNG")
    files = {
        "truncated.png": noise.getvalue()[:1500],
        "text.png": b"a cat",
        "bomb.png": bomb(20_000, 20_000),
        "good.png": picture(99),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    bad = {
        "undecodable_picture": {"image": "truncated.png", "caption": "x"},
        "not_a_picture": {"image": "text.png", "caption": "x"},
        "too_many_pixels": {"image": "bomb.png", "caption": "x"},
        "empty_caption": {"image": "good.png", "caption": ""},
        "missing_key": {"caption": "x"},
        "invalid_utf8": b'{"image": "good.png", "caption": "caf\xe9"}',
        "invalid_json": b'{"image": "good.png", "caption": "x"',
        "missing_file": {"image": "nowhere.png", "caption": "x"},
        "unsafe_path": {"image": "../corpus/good.png", "caption": "x"},
        "duplicate_id": {"image": "good.png", "caption": "x", "id": "003"},
    }
    append(folder, *bad.values(), {"image": "good.png", "caption": "x", "id": "last"})
    code, stderr = command(folder, tmp_path / "out", max_rejects=0.5, workers=2)
    assert code == 0
    dataset = open_dataset(tmp_path / "out")
    assert [found["id"] for found in dataset] == [f"{seed:03d}" for seed in range(30)] + ["last"]
    assert dataset.manifest["rejects"] == dict.fromkeys(sorted(bad), 1)
    rejects = rejects_of(tmp_path / "out")
    assert [reject["reason"] for reject in rejects] == list(bad)
    assert all(list(reject) == ["id", "source", "file", "reason", "detail"] for reject in rejects)
    by_reason = {reject["reason"]: reject for reject in rejects}
    assert by_reason["undecodable_picture"]["file"] == "truncated.png"
    assert by_reason["invalid_json"]["file"] == "captions.jsonl:37"
    assert "the limit is 64,000,000 pixels" in by_reason["too_many_pixels"]["detail"]
    assert "10 rejected (" in stderr and "undecodable_picture 1" in stderr


def test_a_document_with_the_id_of_a_rejected_one_is_taken(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 5)
    append(folder, {"image": "nowhere.png", "caption": "x", "id": "a"})
    append(folder, {"image": "images/000.png", "caption": "x", "id": "a"})
    assert command(folder, tmp_path / "out", max_rejects=0.5)[0] == 0
    assert [found["id"] for found in open_dataset(tmp_path / "out")][-1] == "a"


def test_the_same_id_in_two_sources_is_no_duplicate(command: Command, tmp_path: Path):
    inputs = [folder_corpus(tmp_path / name, 3) for name in ("a", "b")]
    assert command(inputs, tmp_path / "out")[0] == 0
    assert open_dataset(tmp_path / "out").manifest["rejects"] == {}


def test_too_many_rejects_end_the_job_and_a_higher_limit_finishes_it(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 30)
    append(folder, *({"image": f"nowhere-{number}.png", "caption": "x"} for number in range(8)))
    append(folder, {"image": "images/000.png", "caption": " "})
    code, stderr = command(folder, tmp_path / "out")
    line = error_line(stderr)
    assert code == 1
    assert "9 of 39 documents rejected (23.1%, --max-rejects is 10.0%), most often as missing_file (8)" in line
    assert line.endswith(f"see {tmp_path / 'out' / 'rejects.jsonl'}")
    assert len(rejects_of(tmp_path / "out")) == 9
    assert not (tmp_path / "out/manifest.json").exists()
    assert command(folder, tmp_path / "out", max_rejects=0.3)[0] == 0
    assert command(folder, tmp_path / "straight", max_rejects=0.3)[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_too_many_rejects_are_noticed_long_before_the_end(command: Command, tmp_path: Path):
    lines = [{"text": "x"} if number % 5 else {"other": "x"} for number in range(1, 1001)]
    jsonl(tmp_path / "text.jsonl", lines)
    code, stderr = command(tmp_path / "text.jsonl", tmp_path / "out", samples_per_part=1000)
    assert code == 1 and "20 of 100 documents rejected" in error_line(stderr)
    assert len(rejects_of(tmp_path / "out")) == 20


def test_a_job_that_can_use_nothing_fails(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 3)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    code, stderr = command(folder, tmp_path / "out", max_rejects=1)
    assert code == 1 and "none of the 3 documents can be used" in error_line(stderr)


def test_wrong_use_is_one_line_and_exit_code_2(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "corpus", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    (tmp_path / "vq").mkdir()
    (tmp_path / "vq/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    cases = [
        ({"source": tmp_path / "nowhere"}, "nowhere: no such file or folder"),
        ({"source": tmp_path / "empty"}, "empty: no .jsonl, .json, .tar, .parquet, .arrow, .txt directly in it"),
        ({"job_index": 3, "job_count": 3}, "--job-index 3 is not below --job-count 3"),
        ({"tokenizer": tmp_path / "empty"}, "tokenizer.json: cannot be read: No such file or directory"),
        ({"tokenizer": tmp_path / "tokenizer"}, "tokenizer.json: not a tokenizer file"),
        ({"vq": "no-such-model"}, "no VQ model 'no-such-model'"),
        ({"vq": tmp_path / "vq"}, "AutoencoderKL"),
        ({"output": tmp_path / "taken"}, "it holds thesis.tex"),
        ({"output": tmp_path / "file"}, "file: cannot be made a folder"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "abacus"}, "--device abacus"),
    ]
    before = contents(tmp_path / "taken")
    for case, message in cases:
        options = {"source": folder, "output": tmp_path / "out"} | case
        code, stderr = command(options.pop("source"), options.pop("output"), **options)
        assert code == 2 and message in error_line(stderr), stderr
        assert "Traceback" not in stderr
    assert contents(tmp_path / "taken") == before
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_rejects", 2, "between 0 and 1"),
        ("batch_size", 0, "at least 1"),
        ("workers", -1, "0 or more"),
        ("max_aspect", "nan", "0 or more, and finite"),
        ("max_aspect", 0.5, "1 or more, or 0 for any"),
        ("picture_seconds", "inf", "0 or more, and finite"),
        ("image_size", 100_000, "larger than any picture that is read"),
    ],
)
def test_values_out_of_range(command: Command, tmp_path: Path, option: str, value: object, message: str):
    code, stderr = command(folder_corpus(tmp_path / "corpus", 1), tmp_path / "out", **{option: value})
    assert code == 2 and message in stderr and f"--{option.replace('_', '-')}" in stderr


def test_a_limit_that_no_text_has_and_any_number_of_seconds(command: Command, tmp_path: Path):
    corpus = folder_corpus(tmp_path / "corpus", 2)
    code, stderr = command(corpus, tmp_path / "out", min_text=9, max_text=2)
    assert code == 2 and "--max-text 2 is below --min-text 9" in stderr
    assert command(corpus, tmp_path / "out", picture_seconds=1e300)[0] == 0


def test_an_output_among_pictures_and_texts_is_refused(command: Command, tmp_path: Path):
    """They are read at any depth: the job would not go on after a stop, because its own files change the listing."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture(0))
    (tmp_path / "in/a.txt").write_text("A")
    before = contents(tmp_path / "in")
    for output in ("in", "in/shards"):
        code, stderr = command(tmp_path / "in", tmp_path / output)
        assert code == 2 and f"lies in the input {tmp_path}/in, which is read at any depth" in error_line(stderr)
    assert contents(tmp_path / "in") == before
    flat = folder_corpus(tmp_path / "flat", 2)  # its records alone say what is read
    assert command(flat, flat / "shards")[0] == 0


def test_unsafe_names_in_a_tar_write_nothing(command: Command, tmp_path: Path):
    members = [(f"{seed}.{kind}", data) for seed in range(20) for kind, data in (("png", picture(seed)), ("txt", b"x"))]
    for name in ("../evil", "/tmp/evil"):
        members += [(f"{name}.png", picture(1)), (f"{name}.txt", b"x")]
    source = tar(tmp_path / "inputs.tar", members)
    assert command(source, tmp_path / "out")[0] == 0
    assert open_dataset(tmp_path / "out").manifest["rejects"] == {"unsafe_path": 2}
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_file_is_one_reject_and_the_others_are_made(command: Command, tmp_path: Path):
    folder = tar_corpus(tmp_path / "tars", 30, per_tar=10)
    cut = folder / "00010.tar"
    cut.write_bytes(cut.read_bytes()[:700])
    assert command(folder, tmp_path / "out")[0] == 0
    assert [found["id"] for found in open_dataset(tmp_path / "out")][9:12] == ["009", "020", "021"]
    (reject,) = rejects_of(tmp_path / "out")
    assert reject["reason"] == "damaged_file" and reject["file"] == "00010.tar"
    assert "not a sound, uncompressed tar" in reject["detail"]


def test_names_of_any_bytes_in_a_tar(command: Command, tmp_path: Path):
    name = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    source = tar(tmp_path / "inputs.tar", [(f"{name}.png", picture(0)), (f"{name}.txt", b"x"), (f"{name}2.png", b"")])
    assert command(source, tmp_path / "out", max_rejects=0.6)[0] == 0
    assert open_dataset(tmp_path / "out")[0]["id"] == "inputs/caf\\udce9 \\udcff"
    assert rejects_of(tmp_path / "out")[0]["id"] == "inputs.tar/caf\\udce9 \\udcff2"
