"""Pictures of several shapes in exports: exactly their codes, mixed in a batch as one by one, and chosen by the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM
from model.hf.processing_uni_x import UniXProcessor
from tests.tools.tiny_export import GRID, SHAPES, write_export

GUIDED = {"guidance_scale": lambda code, count: 1.5 + 2.0 * code / count, "temperature": 1.0}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """Model and processor of a folder with random weights, as transformers opens them."""
    folder = write_export(tmp_path_factory.mktemp("shaped") / "export", ("<|im_start|>", "<|im_end|>"), SHAPES)
    return UniXForCausalLM.from_pretrained(folder).eval(), UniXProcessor.from_pretrained(folder)


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_a_batch_of_mixed_shapes_is_equal_to_one_by_one(opened):
    model, processor = opened
    captions, shapes = ["a", "a longer caption", "bc", "d", "e"], [list(grid) for grid in SHAPES]
    batch = processor.draw(captions, shape=shapes)
    assert batch["shapes"] == [0, 1, 2, 3, 4] and "num_codes" not in batch
    together = model.generate_images(**batch, **GUIDED, generator=seeds(*range(5)))
    assert [tuple(codes.shape) for codes in together] == list(SHAPES)
    chance = seeds(*range(5))
    for number, caption in enumerate(captions):
        alone = model.generate_images(
            **processor.draw([caption], shape=shapes[number]), **GUIDED, generator=[chance[number]]
        )
        assert torch.equal(alone[0], together[number])
    mixed = seeds(*range(5))
    model.generate_images(
        **batch, **GUIDED, generator=mixed
    )  # what is drawn later does not depend on the others either
    assert all(torch.equal(one.get_state(), other.get_state()) for one, other in zip(mixed, chance))
    assert [picture.size for picture in processor.pictures(together)] == [(2 * c, 2 * r) for r, c in SHAPES]


def test_the_model_chooses_among_its_shapes_and_a_seed_chooses_again(opened):
    model, processor = opened
    batch = processor.draw([f"caption {number}" for number in range(12)])
    assert batch["shapes"] == [None] * 12
    drawn = model.generate_images(**batch, temperature=1.0, guidance_scale=1.0, generator=seeds(*range(12)))
    grids = [tuple(codes.shape) for codes in drawn]
    assert set(grids) <= set(SHAPES) and len(set(grids)) >= 3
    chosen = model.choose_shapes(batch["input_ids"], batch["attention_mask"], generator=seeds(*range(12)))
    assert [SHAPES[shape] for shape in chosen] == grids
    one = processor.draw(["caption 7"])
    assert model.choose_shapes(one["input_ids"], generator=seeds(7)) == [chosen[7]]
    state = seeds(3)
    model.choose_shapes(one["input_ids"], shapes=2, generator=state)
    assert torch.equal(state[0].get_state(), seeds(3)[0].get_state())  # what is given draws nothing


def test_a_choice_has_the_probabilities_of_the_model(opened):
    """The chance of a shape is that of its words among the words of all shapes, id by id."""
    model, processor = opened
    prompt = processor.draw(["x"])["input_ids"][0].tolist()
    words = model.config.size_words
    with torch.no_grad():
        steps = {word[0] for word in words}
        logits = model(torch.tensor([prompt])).logits[0, -1]
        allowed = sorted(steps)
        first = logits[allowed].softmax(-1)
    found = [model.choose_shapes(torch.tensor([prompt] * 200), generator=seeds(*range(n, n + 200))) for n in (0, 200)]
    counts = np.bincount([words[shape][0] for shape in sum(found, [])], minlength=max(allowed) + 1)[allowed] / 400
    assert np.abs(counts - first.numpy()).max() < 0.1
    likeliest = model.choose_shapes(torch.tensor([prompt]), temperature=0)
    assert words[likeliest[0]][0] == allowed[int(first.argmax())]


def test_plain_generate_gives_each_picture_exactly_its_codes(opened):
    model, processor = opened
    start, end, offset = (
        model.config.vision_start_token_id,
        model.config.vision_end_token_id,
        model.config.image_token_offset,
    )
    rows = [[*processor.encode("a"), *processor.size_words[number], start] for number in (1, 3)]
    ids = processor.batch(rows)
    torch.manual_seed(0)
    found = model.generate(**ids, do_sample=True, max_new_tokens=24, eos_token_id=-1)
    for row, count in zip(found[:, ids["input_ids"].shape[1] :].tolist(), (15, 16)):
        assert all(token >= offset for token in row[:count]) and row[count] == end
        assert all(token < offset for token in row[count + 1 :])
    torch.manual_seed(0)
    free = model.generate(
        torch.tensor([processor.encode("abc")] * 8), do_sample=True, max_new_tokens=60, eos_token_id=-1
    )
    for row in free.tolist():
        for place, token in enumerate(row):
            if token == start:
                assert any(row[place - len(word) : place] == word for word in model.config.size_words)
    with pytest.raises(ValueError, match="does not follow the size words"):
        model.generate(torch.tensor([[*processor.encode("a"), start]]), max_new_tokens=2)


def test_documents_draw_what_their_words_say(opened):
    model, processor = opened
    start = model.config.vision_start_token_id
    prompts = [[*processor.encode("a picture: "), *processor.size_words[number], start] for number in (4, 1)]
    documents = model.generate_documents(
        prompts, processor.unconditional_ids, max_images=1, max_new_tokens=5, guidance_scale=2.0, generators=seeds(1, 2)
    )
    for prompt, new, (rows, columns) in zip(prompts, documents, (SHAPES[4], SHAPES[1])):
        codes = [token for token in new if token >= model.config.image_token_offset]
        assert len(codes) == rows * columns
        parts = processor.document([*prompt, *new])
        assert parts[0] == "a picture: " and parts[1].size == (2 * columns, 2 * rows)
    alone = model.generate_documents(
        prompts[1:],
        processor.unconditional_ids,
        max_images=1,
        max_new_tokens=5,
        guidance_scale=2.0,
        generators=seeds(2),
    )
    assert alone[0] == documents[1]
    with pytest.raises(ValueError, match="no size words before it"):
        model.generate_documents([[5, start]], processor.unconditional_ids)


def test_sources_have_their_own_shape_and_words(opened):
    model, processor = opened
    wide, square = Image.new("RGB", (50, 30), "red"), Image.new("RGB", (20, 20), "blue")
    codes = processor.codes([wide, square])
    assert [tuple(one.shape) for one in codes] == [(3, 5), (4, 4)]
    ids = processor.ids_of([wide])
    word = processor.encode("3*5")
    assert ids[: len(word) + 1] == [*word, model.config.vision_start_token_id] and len(ids) == len(word) + 17
    batch = processor.edit([wide, square], ["turn it", "again"], shape="16:4")
    assert batch["shapes"] == [3, 3]
    drawn = model.generate_images(**batch, guidance_scale=2.0, image_guidance_scale=1.5, temperature=0)
    assert [tuple(one.shape) for one in drawn] == [(2, 8)] * 2


def test_what_does_not_fit_is_refused(opened):
    model, processor = opened
    ids = processor.draw(["a"])["input_ids"]
    start = torch.tensor([[model.config.vision_start_token_id]])
    with pytest.raises(ValueError, match="num_codes 16: this model has shapes"):
        model.generate_images(ids, num_codes=16)
    with pytest.raises(ValueError, match="must be .* end before the size words"):
        model.generate_images(torch.cat((ids, start), dim=1), guidance_scale=1.0)
    for shapes, message in (
        ([9], "give a number of 0 to 4"),
        ([0, 1], "2 shapes for 1 prompts"),
        ("0", "give a number"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_images(ids, shapes=shapes, guidance_scale=1.0)
    for shape, message in (
        ("5:1", "far from all"),
        ("round", "give a ratio"),
        (["1:1", "1:1"], "2 shapes for 1 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.draw(["a"], shape=shape)
    with pytest.raises(ValueError, match="are no picture"):
        processor.pictures([torch.zeros(5, 4, dtype=torch.int64)])
    with pytest.raises(ValueError, match="size words of its own"):
        UniXConfig(**{"picture_shapes": [{"grid": [4, 4], "ids": [1]}, {"grid": [3, 5], "ids": [1]}]})


def test_a_model_of_squares_says_nothing_of_shapes(tmp_path: Path):
    folder = write_export(tmp_path / "square")
    assert "picture_shapes" not in (folder / "config.json").read_text()
    assert "shapes" not in (folder / "unix_prompts.json").read_text()
    model, processor = UniXForCausalLM.from_pretrained(folder).eval(), UniXProcessor.from_pretrained(folder)
    batch = processor.draw(["a"], shape="1:1")
    assert batch["num_codes"] == 16 and "shapes" not in batch
    assert model.generate_images(**batch, guidance_scale=1.0, temperature=0).shape == (1, GRID[0] * GRID[1])
    with pytest.raises(ValueError, match="far from all"):
        processor.draw(["a"], shape="4:3")
    with pytest.raises(ValueError, match="this model has one shape"):
        model.generate_images(batch["input_ids"], num_codes=16, shapes=[0])


ELSEWHERE = """
import sys
from transformers import AutoModelForCausalLM, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
drawn = model.generate_images(**processor.draw(["a"], shape="1:4"), guidance_scale=2.0, temperature=0)
print(*processor.pictures(drawn)[0].size)
"""


def test_the_folder_alone_draws_shapes(tmp_path: Path):
    """With the code that travels in the folder, in a process that knows nothing of this one."""
    folder = write_export(tmp_path / "shaped_export", (), SHAPES)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-W", "ignore", "-c", ELSEWHERE, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "4 16", done.stderr
