"""tools/generate.py beyond pictures from text: edits, texts, documents, previews, and jobs that were ended."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.prompts import edit_ids, unconditional_ids
from pretrain.system.errors import UserError
from tests.tools.test_generate import pixels, run
from tests.tools.tiny_export import CHATML, GRID, write_export
from tools import generate
from tools.export.folder import open_export
from tools.generation import results
from tools.generation.batches import partial_picture, stop_ids
from tools.generation.prompts import Request, codes_of, prompt_ids, sample_seed
from tools.generation.record import Record, sole_user


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("tasks") / "export", max_position_embeddings=512)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    for number in range(2):
        drawn = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


def test_edits_use_the_source_and_a_scale_of_its_own(export, sources, tmp_path):
    one = ["--image", sources[0], "--prompt", "make it red", "--temperature", 0, "--num-images", 1]
    (line,) = run(export, tmp_path / "out", "--task", "edit", *one, "--guidance", "1:3", "--image-guidance", 2)
    assert line["settings"]["guidance"] == [1.0, 3.0] and line["images"] == [str(sources[0])]
    opened = open_export(export)
    codes = codes_of(opened, Request("", (sources[0],)))
    whole, image_only = edit_ids(codes, "make it red", opened.encode, opened.markup, opened.vocabulary)
    drawn = opened.model.generate_images(
        torch.tensor([whole]),
        None,
        torch.tensor(unconditional_ids(opened.encode, opened.vocabulary, opened.templates)),
        num_codes=16,
        guidance_scale=[1 + 2 * code / 15 for code in range(16)],
        image_guidance_scale=2.0,
        image_only_ids=torch.tensor([image_only]),
        temperature=0,
    )
    expected = np.asarray(opened.vq.decode(drawn.view(1, *GRID))[0]).astype(int)
    assert np.abs(pixels(tmp_path / "out" / line["file"]) - expected).max() <= 1
    other = [str(word).replace(str(sources[0]), str(sources[1])) for word in one]
    run(export, tmp_path / "other", "--task", "edit", *other)
    assert np.abs(pixels(tmp_path / "other" / line["file"]) - expected).max() > 1


def test_a_file_of_edits_names_its_sources(export, sources, tmp_path):
    shutil.copy(sources[0], tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    lines = [
        {"prompt": "redder", "images": ["a.png"]},
        {"prompt": "redder", "images": ["bad.png"]},
        {"prompt": "both", "images": ["a.png", "a.png"]},
    ]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--task", "edit", "--prompts-file", tmp_path / "edits.jsonl", "--num-images", 1]
    found = run(export, tmp_path / "out", *arguments)
    assert ["file" in line for line in found] == [True, False, True] and "not a picture" in found[1]["error"]
    assert (tmp_path / "out" / "0002-00.png").is_file() and not (tmp_path / "out" / "0001-00.png").exists()


def test_texts_are_batched_and_sampled_by_their_seeds(export, sources, tmp_path, capsys):
    prompts = [word for text in ("a", "a longer beginning", "b", "c d") for word in ("--prompt", text)]
    options = ["--task", "text", "--max-new-tokens", 8, "--text-temperature", 1]
    together = run(export, tmp_path / "a", *prompts, *options)
    alone = run(export, tmp_path / "b", *prompts, *options, "--batch-size", 1)
    assert [line["text"] for line in alone] == [line["text"] for line in together]
    assert "a longer beginning: " in capsys.readouterr().out
    assert [line["text"] for line in run(export, tmp_path / "c", *prompts, *options, "--seed", 1)] != [
        line["text"] for line in together
    ]
    greedy = run(export, tmp_path / "d", *prompts, *options[:4], "--image", sources[0])
    assert len(greedy) == 4 and "seed" not in greedy[0]["settings"] and greedy[0]["images"] == [str(sources[0])]


def test_chat_asks_in_a_turn_and_stops_at_its_end(sources, tmp_path):
    folder = write_export(tmp_path / "chat", added=CHATML, max_position_embeddings=512)
    opened = open_export(folder)
    ids, _ = prompt_ids(opened, "caption", Request("", (sources[0],)), [[1, 2]], chat=True)
    asked = opened.decode(ids)  # control tokens are left out
    assert asked.startswith("user\n") and asked.endswith("It is:\nassistant\n")
    assert len(opened.markup("<|im_end|>")) == 1
    assert stop_ids(opened) == [opened.vocabulary.eos_id, *opened.markup("<|im_end|>")]
    (line,) = run(folder, tmp_path / "out", "--image", sources[0], "--chat", "--max-new-tokens", 5)
    assert line["settings"]["chat"] is True
    plain = open_export(write_export(tmp_path / "plain"))
    assert stop_ids(plain) == [plain.vocabulary.eos_id]


def test_documents_name_their_parts(export, tmp_path, monkeypatch):
    opened = open_export(export)
    vocabulary = opened.vocabulary
    words = list(opened.encode("so"))
    drawn = [vocabulary.vision_start_id, *(vocabulary.image_token_offset + code for code in range(16))]
    drawn += [vocabulary.vision_end_id, *words, vocabulary.eos_id]
    model = "model.hf.generation_uni_x.PictureGenerationMixin.generate_documents"
    monkeypatch.setattr(model, lambda self, prompts, *args, **options: [[*words, *drawn] for _ in prompts])
    (line,) = run(export, tmp_path / "out", "--task", "interleaved", "--prompt", "a story", "--max-new-tokens", 5)
    assert line["parts"] == [{"text": "so"}, {"file": "0000-00-01.png"}, {"text": "so"}]
    expected = np.asarray(opened.vq.decode(torch.arange(16).view(1, *GRID))[0]).astype(int)
    assert np.abs(pixels(tmp_path / "out" / "0000-00-01.png") - expected).max() <= 1


def test_a_document_of_the_model_itself_is_written(export, tmp_path):
    (line,) = run(export, tmp_path / "out", "--task", "interleaved", "--prompt", "a story", "--max-new-tokens", 5)
    assert isinstance(line["parts"], list) and line["settings"]["max_images"] == 4


def test_previews_of_more_rows_than_pictures_have_are_told(export, tmp_path, capsys):
    run(export, tmp_path / "out", "--prompt", "a cat", "--num-images", 1, "--preview", 4)
    assert "warning: --preview 4 changes nothing: pictures have at most 4 rows of codes" in capsys.readouterr().err


def test_previews_show_what_is_drawn_so_far(export, tmp_path, monkeypatch):
    seen, save = [], results.save_picture
    monkeypatch.setattr(results, "save_picture", lambda *a: (seen.append((a[1].name, a[0])), save(*a)))
    run(export, tmp_path / "out", "--prompt", "a cat", "--num-images", 1, "--preview", 2)
    assert [name for name, _ in seen] == ["0000-00.partial.png", "0000-00.png", "contact_sheet.png"]
    partial = np.asarray(seen[0][1])
    assert (partial[4:] == 128).all() and not (partial[:4] == 128).all()  # two of four rows, two pixels a code
    assert not list((tmp_path / "out").glob("*.partial.png"))
    opened = open_export(export)
    whole = partial_picture(opened, torch.arange(16), GRID)
    assert np.array_equal(np.asarray(whole), np.asarray(opened.vq.decode(torch.arange(16).view(1, *GRID))[0]))


PROMPTS = [word for text in ("a cat", "a dog", "a house") for word in ("--prompt", text)]
JOB = [*PROMPTS, "--num-images", 2, "--batch-size", 2]


class Killed(BaseException):
    """As a signal would end the job."""


@pytest.mark.parametrize("moment", ["before a picture", "before a line", "within a line"])
def test_an_ended_job_goes_on_where_it_was(export, tmp_path, monkeypatch, moment):
    expected = run(export, tmp_path / "whole", *JOB)
    save, add, saved = results.save_picture, Record.add, []

    def save_or_die(picture, path):
        if moment == "before a picture" and len(saved) == 3:
            raise Killed
        saved.append(path.name)
        save(picture, path)

    def add_or_die(record, lines):
        if len(saved) == 4 and moment == "before a line":
            raise Killed
        add(record, lines)
        if len(saved) == 4 and moment == "within a line":
            record.path.write_bytes(record.path.read_bytes()[:-30])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_picture", save_or_die)
        patch.setattr(Record, "add", add_or_die)
        with pytest.raises(Killed):
            run(export, tmp_path / "out", *JOB)
    drawn_before = len(Record(tmp_path / "out").lines)
    assert drawn_before == (3 if moment == "within a line" else 2)
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_picture", lambda *a: (saved.append(a[1].name), save(*a)))
        del saved[:]
        assert run(export, tmp_path / "out", *JOB) == expected
    assert len(saved) == 6 - drawn_before + 1  # nothing that had a line is drawn again; the last is the sheet of all
    for line in expected:
        again, whole = ((tmp_path / folder / line["file"]).read_bytes() for folder in ("out", "whole"))
        assert again == whole
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("out", "whole")]
    assert names[0] == names[1]


def test_a_finished_job_can_grow_but_not_change(export, tmp_path, monkeypatch):
    first = run(export, tmp_path / "out", *JOB)
    with monkeypatch.context() as patch:
        patch.setattr(results, "draw_batch", None)  # a call would raise
        assert run(export, tmp_path / "out", *JOB) == first
    more = run(export, tmp_path / "out", *JOB, "--prompt", "a tree")
    assert more[:6] == first and [line["prompt"] for line in more[6:]] == ["a tree"] * 2
    with pytest.raises(UserError, match="another job .[a-z_]+ is .* there, .* now.: give another --output, or --over"):
        run(export, tmp_path / "out", *JOB, "--seed", 1)
    with pytest.raises(UserError, match='prompt is "a cat" there, "a cow" now'):
        run(export, tmp_path / "out", "--prompt", "a cow")
    again = run(export, tmp_path / "out", "--prompt", "a cow", "--num-images", 1, "--overwrite")
    assert [line["prompt"] for line in again] == ["a cow"]
    assert sorted(path.name for path in (tmp_path / "out").glob("0*.png")) == ["0000-00.png"]
    (tmp_path / "out" / "0000-00.png").unlink()
    assert run(export, tmp_path / "out", "--prompt", "a cow", "--num-images", 1) == again
    assert (tmp_path / "out" / "0000-00.png").is_file()


def test_records_of_others_and_two_jobs_at_once_are_refused(export, tmp_path):
    (tmp_path / "generations.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="generations.jsonl line 1: not a result"):
        run(export, tmp_path, "--prompt", "a cat")
    with sole_user(tmp_path), pytest.raises(UserError, match="another job writes there"), sole_user(tmp_path):
        pass


def test_seeds_differ():
    assert len({sample_seed(*place) for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]}) == 5


@pytest.mark.parametrize(("text", "found"), [("4", 4.0), ("1:6.5", (1.0, 6.5)), ("0", 0.0)])
def test_scales_are_numbers_or_ranges(text, found):
    assert generate.scale(text) == found


@pytest.mark.parametrize("text", ["1e39", "1:1e39"])
def test_scales_beyond_the_numbers_of_a_model_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="1e39 is not a number of at least 0 and at most 1,000,000"):
        generate.scale(text)
