"""Several shapes from a run to its pictures: export, generate, the server and the layouts of benchmarks."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.system.errors import UserError
from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData, write_config
from tests.tools.evaluation.prompt_files import arguments_of, write_prompts
from tests.tools.serving_process import serving
from tests.tools.tiny_export import CHATML, SHAPES, write_export
from tools import evaluate, generate
from tools.export.folder import open_export
from tools.generation.prompts import Request, check_lengths, codes_of, prompt_ids

SIZES = [(2 * columns, 2 * rows) for rows, columns in SHAPES]  # two pixels a code


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("shapes") / "export", CHATML, SHAPES, max_position_embeddings=1024)


def run(export: Path, output: Path, *arguments: object) -> list[dict]:
    assert generate.main(["--model", str(export), "--output", str(output), *map(str, arguments)]) == 0
    return [json.loads(line) for line in (output / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def size_of(folder: Path, line: dict) -> tuple[int, int]:
    return Image.open(folder / line["file"]).size


def test_a_shape_is_drawn_as_asked_or_chosen(export: Path, tmp_path: Path):
    lines = run(export, tmp_path / "asked", "--prompt", "a cat", "--shape", "4:1", "--num-images", 2)
    assert [size_of(tmp_path / "asked", line) for line in lines] == [SIZES[3]] * 2 and lines[0]["shape"] == "2*8"
    lines = run(export, tmp_path / "size", "--prompt", "a cat", "--size", "300x500", "--num-images", 1)
    assert size_of(tmp_path / "size", lines[0]) == SIZES[2] and lines[0]["size"] == "6x10"
    lines = run(export, tmp_path / "free", "--prompt", "a cat", "--num-images", 12)
    found = {size_of(tmp_path / "free", line) for line in lines}
    assert found <= set(SIZES) and len(found) >= 3 and {line["shape"] for line in lines} == {""}
    assert max(Image.open(tmp_path / "free/contact_sheet.png").size) > 192


def test_a_mixed_batch_draws_what_each_alone_would(export: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": "a cat", "shape": f"{rows}*{columns}"}) + "\n" for rows, columns in SHAPES)
    )
    words = ["--prompts-file", prompts, "--num-images", 1, "--preview", 2]
    together = run(export, tmp_path / "a", *words)
    alone = run(export, tmp_path / "b", *words, "--batch-size", 1)
    for number, (line, other) in enumerate(zip(together, alone, strict=True)):
        first, second = (
            np.asarray(Image.open(tmp_path / folder / "0000-00.png".replace("0000", f"{number:04d}")))
            for folder in "ab"
        )
        assert first.shape[:2] == SIZES[number][::-1] and np.abs(first.astype(int) - second).max() <= 1
        assert line["shape"] == other["shape"]
    assert not list((tmp_path / "a").glob("*.partial.png"))


def test_sources_and_documents(export: Path, tmp_path: Path):
    Image.new("RGB", (50, 30), "red").save(tmp_path / "wide.png")
    opened = open_export(export)
    request = Request("turn it", (tmp_path / "wide.png",))
    (codes,) = codes_of(opened, request)
    assert codes.shape == (3, 5)
    whole, without = prompt_ids(opened, "edit", request, [codes])
    start = opened.vocabulary.vision_start_id
    word = list(opened.encode("3*5"))
    assert whole[whole.index(start) - len(word) : whole.index(start)] == word and whole[-1] != start
    check_lengths(opened, "edit", [request], generate.Sampling(4.0, 1.0, 0, 1.0, 0))
    lines = run(
        export,
        tmp_path / "edits",
        "--task",
        "edit",
        "--image",
        tmp_path / "wide.png",
        "--prompt",
        "turn it",
        "--shape",
        "1:4",
        "--num-images",
        1,
    )
    assert size_of(tmp_path / "edits", lines[0]) == SIZES[4]
    run(export, tmp_path / "captions", "--image", tmp_path / "wide.png", "--max-new-tokens", 3)
    lines = run(export, tmp_path / "documents", "--task", "interleaved", "--prompt", "Once", "--max-new-tokens", 20)
    assert lines[0]["parts"] is not None


def test_what_cannot_be_drawn_is_refused(export: Path, tmp_path: Path):
    square = write_export(tmp_path / "square")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for folder, words, message in (
        (export, ["--prompt", "a", "--shape", "9*9"], "none of rows"),
        (export, ["--prompt", "a", "--shape", "9:1"], "far from all"),
        (export, ["--prompt", "a", "--shape", "1:1", "--size", "8x8"], "give one of them"),
        (export, ["--prompt", "a", "--size", "8"], "give WIDTHxHEIGHT"),
        (export, ["--image", tmp_path / "a.png", "--shape", "1:1"], "--task caption draws no picture of a given shape"),
        (square, ["--prompt", "a", "--shape", "4:3"], "far from all"),
    ):
        with pytest.raises(UserError, match=message):
            run(folder, tmp_path / "out", *words)
    run(square, tmp_path / "out", "--prompt", "a", "--shape", "1:1", "--num-images", 1)
    opened = open_export(export)
    from tools.export.folder import check_square

    with pytest.raises(UserError, match="demo_report.py reads squares only"):
        check_square(opened, "demo_report.py")


def test_the_server_draws_the_nearest_shape_and_fits_it(commands: CommandServer, export: Path, tmp_path: Path):
    with serving(commands, export, tmp_path) as served:

        def draw(**asked) -> dict:
            status, found, _ = served.post(
                "/v1/images/generations", json.dumps({"prompt": "a cat", "seed": 1, **asked}).encode()
            )
            assert status == 200, found
            return found

        def sizes(found: dict) -> list[tuple[int, int]]:
            return [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size for one in found["data"]]

        own = served.get("/v1/models")[1]["data"][0]["uni_x"]
        assert own["sizes"] == [f"{width}x{height}" for width, height in SIZES] and own["size"] == own["sizes"][0]
        for asked, true in (("10x6", (10, 6)), ("1792x1024", (1707, 1024)), ("32x128", (32, 128)), ("64x64", (64, 64))):
            found = draw(size=asked)
            assert sizes(found) == [true] and found["size"] == "{}x{}".format(*true)
        free = draw(n=4)
        assert set(sizes(free)) <= set(SIZES)
        said = [one.get("size", free["size"]) for one in free["data"]]
        assert said == [f"{width}x{height}" for width, height in sizes(free)]


@pytest.mark.parametrize("task", ["geneval", "dpg", "imgedit"])
def test_layouts_of_benchmarks_have_one_shape_an_item(export: Path, tmp_path: Path, task: str):
    prompts = write_prompts(tmp_path / task, task)
    words = ["--model", export, "--output", tmp_path / "out", *arguments_of(task, prompts), "--per-kind", 1]
    assert evaluate.main([*map(str, words)]) == 0
    result = json.loads((tmp_path / f"out/{task}.json").read_text())
    expected = {"geneval": [[8, 8]], "dpg": [[16, 16]], "imgedit": [[10, 6]]}[task]  # sources of 24 x 20, or 1.2 to 1
    assert result["pictures"]["sides"] in (expected, [[8, 8]]) and result["settings"]["shape"] in (
        "1:1",
        "nearest to the source",
    )
    if task == "dpg":
        with pytest.raises(UserError, match="cuts its files into four squares"):
            evaluate.main(
                [*map(str, words[:2]), "--output", str(tmp_path / "wide"), *map(str, words[4:]), "--shape", "4:1"]
            )


def test_a_run_draws_samples_and_its_export_all_shapes(commands: CommandServer, shaped_data: TinyData, tmp_path: Path):
    config = write_config(shaped_data, tmp_path / "run")
    done = commands.run(
        "pretrain/train.py",
        "--config",
        config,
        "log.samples_every=7",
        "run.steps=7",
        "log.sample_prompts=[a, b, c, d, e, f, g, h, i]",
    )
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "run/samples/step_00000007.png").width > 300
    done = commands.run("tools/convert_to_hf.py", "--checkpoint", tmp_path / "run", "--output", tmp_path / "model")
    assert done.code == 0, done.err
    shapes = json.loads((tmp_path / "model/config.json").read_text())["picture_shapes"]
    assert [shape["grid"] for shape in shapes] == json.loads((tmp_path / "model/unix_prompts.json").read_text())[
        "shapes"
    ]
    assert "3 x 4" in (tmp_path / "model/README.md").read_text()
    for rows, columns in [tuple(shape["grid"]) for shape in shapes]:
        folder = tmp_path / f"{rows}-{columns}"
        lines = run(tmp_path / "model", folder, "--prompt", "a", "--shape", f"{rows}*{columns}", "--num-images", 1)
        assert size_of(folder, lines[0]) == (8 * columns, 8 * rows)
