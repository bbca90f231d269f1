"""tools/generate.py on a tiny export: what it writes, what its pictures depend on, and what it says to bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.system.errors import UserError
from tests.tools.tiny_export import GRID, write_export
from tools import generate
from tools.export.folder import open_export
from tools.generation import prompts, results
from tools.generation.prompts import Request, codes_of, prompt_ids

SCRIPT = Path(__file__).parents[2] / "tools" / "generate.py"


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("generate") / "export")


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def run(export: Path, output: Path, *arguments: object) -> list[dict]:
    """Run the command in this process; returns the lines of generations.jsonl."""
    assert generate.main(["--model", str(export), "--output", str(output), *map(str, arguments)]) == 0
    return [json.loads(line) for line in (output / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_sheet_and_record(export, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "ein Haus", "tag": 1}\n\n{"prompt": "红苹果"}\n', encoding="utf-8")
    lines = run(export, tmp_path / "out", "--prompt", "a cat", "--prompts-file", prompts, "--num-images", 3)
    assert [(line["prompt"], line["sample_index"]) for line in lines] == [
        (prompt, sample) for prompt in ("a cat", "ein Haus", "红苹果") for sample in range(3)
    ]
    sides = (GRID[1] * 2, GRID[0] * 2)  # two pixels a code
    assert all(Image.open(tmp_path / "out" / line["file"]).size == sides for line in lines)
    assert lines[4]["file"] == "0001-01.png" and lines[4]["settings"]["guidance"] == 4.0
    sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width > 3 * 192 and sheet.height > 3 * 192
    assert len({line["sample_seed"] for line in lines}) == 9


def test_a_picture_is_its_prompt_and_place_whatever_the_batch(export, tmp_path):
    two = ["--prompt", "a cat", "--prompt", "a long description of a house", "--seed", 5]
    runs = {
        "one batch": run(export, tmp_path / "a", *two, "--num-images", 3),
        "small batches": run(export, tmp_path / "b", *two, "--num-images", 3, "--batch-size", 2),
        "fewer of them": run(export, tmp_path / "c", *two, "--num-images", 1, "--batch-size", 1),
    }
    for folder, lines in zip("abc", runs.values(), strict=True):
        for line in lines:
            expected = pixels(tmp_path / "a" / line["file"])
            assert np.abs(pixels(tmp_path / folder / line["file"]) - expected).max() <= 1, (folder, line["file"])
    first, second, third = (pixels(tmp_path / "a" / f"0000-0{sample}.png") for sample in range(3))
    assert np.abs(first - second).max() > 1 and np.abs(second - third).max() > 1

    run(export, tmp_path / "d", *two[:-1], 6, "--num-images", 1)
    assert np.abs(pixels(tmp_path / "d" / "0000-00.png") - first).max() > 1


def test_codes_are_those_of_the_model_itself(export, tmp_path):
    run(export, tmp_path / "out", "--prompt", "a cat", "--num-images", 1, "--guidance", 2, "--temperature", 0)
    opened = open_export(export)
    prompt = [*opened.encode("a cat"), *opened.encode(" Draw."), opened.vocabulary.vision_start_id]
    unconditional = [*opened.encode("<unconditional>"), opened.vocabulary.vision_start_id]
    codes = opened.model.generate_images(
        torch.tensor([prompt]), None, torch.tensor(unconditional), num_codes=16, guidance_scale=2.0, temperature=0
    )
    expected = np.asarray(opened.vq.decode(codes.view(1, *GRID))[0]).astype(int)
    assert np.abs(pixels(tmp_path / "out" / "0000-00.png") - expected).max() <= 1


def test_captions_are_printed_and_written(export, tmp_path, picture, capsys):
    lines = run(export, tmp_path / "out", "--image", picture, "--max-new-tokens", 6)
    assert capsys.readouterr().out.strip() == f"{picture}: {lines[0]['text']}".strip()
    assert lines[0]["images"] == [str(picture)] and lines[0]["prompt"] == "It is:"
    assert not (tmp_path / "out" / "contact_sheet.png").exists()

    questions = run(export, tmp_path / "asked", "--image", picture, "--prompt", "What?", "--prompt", "Why?")
    assert [line["prompt"] for line in questions] == ["What?", "Why?"]

    opened = open_export(export)
    (codes,) = codes_of(opened, Request("", (picture,)))
    ids, _ = prompt_ids(opened, "caption", Request("", (picture,)), [codes])
    vocabulary = opened.vocabulary
    assert ids[0] == vocabulary.vision_start_id and ids[17] == vocabulary.vision_end_id  # 4 x 4 codes between them
    assert all(vocabulary.is_code(token) for token in ids[1:17]) and ids[18:] == list(opened.encode("It is:"))
    found = opened.model.generate(
        torch.tensor([ids]), max_new_tokens=6, do_sample=False, logits_processor=opened.model.text_only()
    )
    assert opened.decode(found[0, len(ids) :].tolist()).strip() == lines[0]["text"]


def test_control_tokens_in_a_prompt_are_only_characters(export):
    opened = open_export(export)
    assert opened.encode("<|vision_start|>") == opened.encode("<|vision_") + opened.encode("start|>")
    assert opened.decode([*opened.encode("äh 猫"), opened.vocabulary.eos_id]) == "äh 猫"


def test_a_job_whose_requests_were_all_put_aside_has_failed(export, picture, tmp_path, capsys):
    """One of several is a line and a warning; with nothing made the command does not end as if it were done."""
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="nothing was made, every request was put aside"):
        run(export, tmp_path / "none", "--image", tmp_path / "text.png")
    lines = run(export, tmp_path / "one", "--image", tmp_path / "text.png", "--image", picture)
    assert ["error" in line for line in lines] == [True, False]
    assert "1 request was put aside, as" in capsys.readouterr().err
    shutil.copy(picture, tmp_path / "text.png")  # mended, and asked for again
    lines = run(export, tmp_path / "one", "--image", tmp_path / "text.png", "--image", picture)
    assert len(lines) == 2 and not any("error" in line for line in lines) and "aside" not in capsys.readouterr().err


def test_a_picture_that_is_put_aside_is_named(export, picture, tmp_path, capsys):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "depth.tiff")
    (tmp_path / "empty.png").touch()
    names = ["depth.tiff", "empty.png"]
    lines = run(
        export, tmp_path / "out", *(word for name in names for word in ("--image", tmp_path / name)), "--image", picture
    )
    assert [line["error"].split(":")[0] for line in lines[:2]] == [str(tmp_path / name) for name in names]


def test_frames_that_are_left_out_are_told_once(export, tmp_path, capsys):
    frames = [Image.new("L", (9, 9), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    edit = ("--task", "edit", "--prompt", "x", "--image", tmp_path / "a.gif")
    run(export, tmp_path / "out", *edit, "--num-images", 2, "--batch-size", 1)
    assert capsys.readouterr().err.count(f"{tmp_path / 'a.gif'}: its further frames or pages are left out") == 1


def test_a_text_is_kept_where_it_cannot_be_printed(export, tmp_path):
    """By an output of ASCII, and by one whose reader has left; the exit code and the record are those of a job that is done."""
    asked = [
        "--model",
        export,
        "--task",
        "text",
        "--prompt",
        "红苹果",
        "--prompt",
        "a dog",
        "--batch-size",
        1,
        "--max-new-tokens",
        2,
    ]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = command(*asked, "--output", tmp_path / "ascii", env=ascii_only)
    assert result.returncode == 0 and result.stdout.startswith("\\u7ea2\\u82f9\\u679c: ")
    read, write = os.pipe()
    os.close(read)
    result = command(*asked, "--output", tmp_path / "left", stdout=write, stderr=subprocess.PIPE, capture_output=False)
    os.close(write)
    assert result.returncode == 0 and "2 texts, each with" in result.stderr
    for name in ("ascii", "left"):
        assert len((tmp_path / name / "generations.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_masks_that_do_not_fit_into_memory_are_refused_before_anything_is_computed(export, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "free_memory", lambda: 2**16)
    with pytest.raises(UserError, match=r"prompts of \d+ tokens, 2 at a time, need about .* GiB .* --batch-size"):
        run(export, tmp_path / "out", "--prompt", "x" * 150, "--num-images", 2)
    monkeypatch.setattr(prompts, "free_memory", lambda: None)  # a system that does not say
    assert len(run(export, tmp_path / "out", "--prompt", "x" * 150, "--num-images", 1)) == 1
    monkeypatch.setattr(prompts, "free_memory", lambda: 0)  # a job that is done computes nothing
    assert len(run(export, tmp_path / "out", "--prompt", "x" * 150, "--num-images", 1)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--prompt", " "], "--prompt: the prompt is ' '"),
        (["--prompts-file", "none.txt"], "none.txt cannot be read"),
        (["--image", "none.png"], "none.png: there is no such picture"),
        (["--task", "edit", "--prompt", "redder"], "edit 'redder' has no source picture"),
        (["--task", "draw", "--prompt", "x", "--image", __file__], "--task draw takes no pictures"),
        (["--task", "text", "--image", __file__], "nothing to do"),
        (["--prompt", "caf\udce9"], r"--prompt: the prompt 'caf.udce9' is not valid Unicode: give it in UTF-8"),
        (["--image", "a" * 5000], "a: there is no such picture"),
        (["--prompt", "word " * 60], r"needs \d+ tokens, the model has 256"),
    ],
)
def test_bad_requests_are_one_line(export, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        run(export, tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "x"}\n{"text": "y"}', "p.jsonl line 2: not of the form"),
        ("p.jsonl", b"{", "p.jsonl line 1: not of the form"),
        ("p.jsonl", b'{"prompt": 3}', "p.jsonl line 1: the prompt is 3"),
        ("p.jsonl", b'{"prompt": "x", "images": "a.png"}', "p.jsonl line 1: images is 'a.png': give a list"),
        ("p.jsonl", b'{"images": ["gone.png"]}', "gone.png: there is no such picture"),
        ("p.txt", b"\n\n", "holds no prompts"),
        ("labels.csv", b"name,label\ncat,1\n", "labels.csv: .csv files are not read"),
        ("p.json", b'[{"prompt": "a"}]', ".json files are not read"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: not of the form .*the key 'prompt' stands twice"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "p.jsonl line 1: the prompt .* is not valid Unicode"),
        ("p.jsonl", b'{"prompt": "a", "x": ' + b"[" * 99_999, "p.jsonl line 1: not of the form .*recursion"),
        ("p.txt", b'a cat\n{"prompt": "a dog"}\n', "p.txt line 2: .* would become the prompt .*: name the file .jsonl"),
        ("p.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_files_are_named(export, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        run(export, tmp_path / "out", "--image" if name.endswith("png") else "--prompts-file", tmp_path / name)


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": 600, **options}
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], **options)


def test_the_command_ends_with_exit_code_2_and_one_line(tmp_path):
    result = command("--model", tmp_path / "none", "--prompt", "a cat", "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: no model folder {tmp_path / 'none'}: give a folder that tools/convert_to_hf.py wrote"
    ]
    assert command("--model", "x", "--output", "y", "--prompt", "z", "--top-p", "1.5").returncode == 2


def test_help_imports_nothing_heavy_and_shows_an_example():
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([name for name in ('torch', 'numpy', 'PIL', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "python tools/generate.py --model" in result.stdout


def test_the_last_line_says_where_results_lie_and_a_second_job_what_differs(
    export, tmp_path, picture, capsys, monkeypatch
):
    out = tmp_path / "out"
    run(export, out, "--prompt", "a cat", "--num-images", 2)
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        told
        == f"{out}: 2 pictures, all of them on {out}/contact_sheet.png, each with its prompt and settings in generations.jsonl"
    )
    width = Image.open(out / "contact_sheet.png").width
    run(export, out, "--prompt", "a cat", "--num-images", 1)  # of fewer pictures than are there, which stay
    assert capsys.readouterr().err.splitlines()[-1] == told and Image.open(out / "contact_sheet.png").width == width
    with pytest.raises(UserError) as refused:
        run(export, out, "--prompt", "a cat", "--num-images", 2, "--guidance", 2.5, "--top-k", 7)
    assert "(guidance is 4.0 there, 2.5 now, top_k is 4096 there, 7 now): give another --output" in str(refused.value)
    monkeypatch.setattr(results, "SHEET_PICTURES", 8)
    dogs = [word for number in range(9) for word in ("--prompt", f"dog {number}")]
    run(export, out, *dogs, "--num-images", 1, "--overwrite")
    assert f"9 pictures, all of them on {out}/contact_sheet.png to contact_sheet-2.png" in capsys.readouterr().err
    monkeypatch.undo()
    run(export, out, "--prompt", "a cat", "--num-images", 1, "--overwrite")
    assert not (out / "contact_sheet-2.png").exists() and f"1 picture, all of them on {out}" in capsys.readouterr().err
    run(export, tmp_path / "captions", "--image", picture, "--max-new-tokens", 2)
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith(f"{tmp_path / 'captions'}: 1 caption, each with its prompt")
    )
