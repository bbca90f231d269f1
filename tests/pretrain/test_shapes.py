"""Pictures of several shapes in training: size words before each, rows planned to the token, and runs as of squares."""

from __future__ import annotations

import dataclasses
import json

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import prompts
from model.prompts import PromptTemplates
from model.vocabulary import IGNORED
from pretrain import checkpoint, setup
from pretrain.config import load_config
from pretrain.data import Data
from pretrain.loader import check_sources
from pretrain.process_ranks import ProcessRanks
from pretrain.rows import RowPlan, RowSize, SourceLengths
from pretrain.system.errors import UserError
from pretrain.tasks import (
    IMAGE_TO_TEXT,
    IN_ORDER,
    NEITHER,
    NO_INSTRUCTION,
    NO_SOURCE,
    TEXT,
    TEXT_TO_IMAGE,
    TURNS,
    UNCONDITIONAL,
    TaskShares,
    build_document,
    build_ordered,
    document_lengths,
    ordered_lengths,
    replace_shared_codes,
    stretches_of,
    tokenize_prompts,
)
from tests.commands import CommandServer
from tests.pretrain.test_rows import index_of
from tests.pretrain.test_targets import ANSWER, QUESTION, STOP, VOCABULARY, encode, markup, said, spelt
from tests.pretrain.tiny_run import STEPS, TinyData, read_metrics, write_config
from tokenization.sample import PICTURE, ROLE, SHAPE, WORDING, Part
from tokenization.shards import open_dataset

GRIDS = ((2, 2), (1, 3), (3, 1), (1, 12))
TEMPLATES = PromptTemplates(("{caption} Draw!",), ("Say:",), "any", grid=(2, 2), shapes=GRIDS)
PROMPTS = tokenize_prompts(markup, VOCABULARY, TEMPLATES)


def shown(role: str, codes: str, shape: int) -> Part:
    return Part(role, numpy.array([int(code) for code in codes]), GRIDS[shape], (), shape)


@pytest.mark.parametrize(
    "task, on_prompts, expected",
    [
        (TEXT_TO_IMAGE, False, "cat Draw![1*3<123>$]"),
        (TEXT_TO_IMAGE, True, "c[at Draw!1*3<123>$]"),
        (UNCONDITIONAL, False, "any[1*3<123>$]"),
        (IMAGE_TO_TEXT, False, "1*3<123>Say:[cat$]"),
    ],
)
def test_size_words_stand_before_each_picture_and_are_learned_where_it_is_drawn(task, on_prompts, expected):
    caption, codes = numpy.array(encode("cat")), numpy.array([1, 2, 3])
    assert spelt(*build_document(PROMPTS, task, 0, caption, codes, on_prompts, 1)) == expected


def test_conversations_edits_and_documents_in_order():
    parts = [shown("user", "1234", 0), said("user", "turn it"), shown("assistant", "567", 2)]

    def ordered(task: int, *parts: Part) -> str:
        return spelt(*build_ordered(PROMPTS, task, 0, parts))

    assert ordered(TURNS, *parts) == f"{QUESTION}2*2<1234>turn it{STOP}\n{ANSWER}[3*1<567>{STOP}]\n"
    assert ordered(NO_SOURCE, *parts) == f"{QUESTION}turn it{STOP}\n{ANSWER}[3*1<567>{STOP}]\n"
    assert ordered(NO_INSTRUCTION, *parts) == f"{QUESTION}2*2<1234>{STOP}\n{ANSWER}[3*1<567>{STOP}]\n"
    assert ordered(NEITHER, *parts) == "any[3*1<567>$]"
    assert ordered(IN_ORDER, said("", "Once"), shown("", "012", 1), said("", "then")) == "O[nce1*3<012>then$]"


def test_prompts_of_generation_are_those_of_training_without_the_words_that_are_asked_for():
    codes = numpy.arange(3).reshape(1, 3)
    caption = prompts.text_to_image_ids("cat", encode, VOCABULARY, TEMPLATES)
    assert caption == encode("cat Draw!") and prompts.unconditional_ids(encode, VOCABULARY, TEMPLATES) == encode("any")
    words = prompts.size_ids(1, encode, TEMPLATES)
    ids, _ = build_document(PROMPTS, TEXT_TO_IMAGE, 0, numpy.array(encode("cat")), codes.ravel(), False, 1)
    assert ids.tolist() == [*caption, *prompts.picture_ids(codes, VOCABULARY, encode, TEMPLATES), VOCABULARY.eos_id]
    assert ids[len(caption) :][: len(words)].tolist() == words == encode("1*3")
    ids, _ = build_document(PROMPTS, IMAGE_TO_TEXT, 0, numpy.array([], int), codes.ravel(), False, 1)
    assert ids[:-1].tolist() == prompts.image_to_text_ids(codes, encode, VOCABULARY, TEMPLATES)
    whole, without = prompts.edit_ids([codes], "turn it", encode, markup, VOCABULARY, TEMPLATES)
    parts = [said("user", "turn it"), shown("user", "012", 1), shown("assistant", "4567", 0)]
    for task, prompt in ((TURNS, whole), (NO_INSTRUCTION, without)):
        ids, labels = build_ordered(PROMPTS, task, 0, parts)
        assert ids[: len(prompt)].tolist() == prompt
        assert (labels[: len(prompt) - 1] == IGNORED).all() and labels[len(prompt) - 1] == ord("2")
    for wrong in (codes.ravel(), [0, 1, 2], numpy.zeros((2, 3), int)):  # no grid, none that says it, another one
        with pytest.raises(UserError, match=r"none of the shapes 2\*2, 1\*3, 3\*1, 1\*12"):
            prompts.turn_ids([wrong], "What?", encode, markup, VOCABULARY, TEMPLATES)


SHAPES = st.integers(0, len(GRIDS) - 1)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([TEXT, TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL]), st.integers(1, 20), SHAPES, st.booleans())
def test_a_document_has_the_length_that_was_planned(task, caption, shape, on_prompts):
    codes = numpy.zeros(0 if task == TEXT else GRIDS[shape][0] * GRIDS[shape][1], int)
    shape = 0 if task == TEXT else shape
    ids, labels = build_document(PROMPTS, task, 0, numpy.full(caption, 65), codes, on_prompts, shape)
    text, vision = document_lengths(PROMPTS, *(numpy.array([value]) for value in (task, 0, caption, len(codes), shape)))
    assert (len(ids), VOCABULARY.is_visual(ids).sum()) == (text[0] + vision[0], vision[0])
    learned = labels != IGNORED
    assert (labels[learned] == ids[1:][learned[:-1]]).all()
    if task in (TEXT_TO_IMAGE, UNCONDITIONAL) and not on_prompts:
        assert learned.sum() == len(codes) + 3 + len(PROMPTS.sizes[shape])  # both markers and the end of the document


ENTRIES = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["text", "wording", "picture"]), st.integers(1, 3), SHAPES),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.booleans(), st.integers(0, 2**16 - 1))
def test_documents_in_order_have_the_planned_length_and_keep_each_picture_with_its_words(entries, turns, draw):
    document: list[tuple[int, int]] = []
    for length, what, role, shape in entries:
        said_by = role * ROLE if turns else 0
        if what == "picture":
            document.append((GRIDS[shape][0] * GRIDS[shape][1], PICTURE + said_by + SHAPE * shape))
        elif what == "wording" and document and not document[-1][1] & PICTURE:
            document.append((length, document[-1][1] | WORDING))
        else:
            document.append((length, said_by))
    kind, task = ("conversation", TURNS) if turns else ("interleaved", IN_ORDER)
    lengths, layout = (numpy.array(column, dtype) for column, dtype in zip(zip(*document), (int, numpy.uint8)))
    planned = ordered_lengths(
        PROMPTS, numpy.array([task]), numpy.array([draw]), numpy.array([len(document)]), lengths, layout
    )
    source = SourceLengths("a", 1.0, index_of([document], [kind]))
    plan = RowPlan([source], PROMPTS, TaskShares(0.6, 0.2, False), RowSize(40, 4), 0)
    pieces = sorted(
        (piece for index in range(8) if plan.epoch_of(index) == 0 for piece in plan.row(index)),
        key=lambda piece: piece.start,
    )
    assert planned[0] == len(build_ordered(PROMPTS, task, draw, plan.parts(pieces[0]))[0])
    whole, _ = build_ordered(PROMPTS, task, pieces[0].text, plan.parts(pieces[0]))
    assert sum(piece.length for piece in pieces) == len(whole)
    for piece in pieces:
        cut = whole[piece.start : piece.start + piece.length]
        opened = numpy.flatnonzero(cut == VOCABULARY.vision_start_id)
        assert len(opened) == (cut == VOCABULARY.vision_end_id).sum()
        shapes = [entry // SHAPE for entry in plan.sources[0].index.layout if entry & PICTURE]
        before = [at for at in numpy.flatnonzero(whole == VOCABULARY.vision_start_id) if at < piece.start]
        for number, at in enumerate(opened.tolist(), len(before)):  # nothing between words and picture, and none cut
            words = PROMPTS.sizes[shapes[number]]
            assert cut[at - len(words) : at].tolist() == list(words)


def test_a_picture_with_its_words_that_no_row_can_hold_is_refused():
    ids = numpy.array(
        [*encode("a1*3"), VOCABULARY.vision_start_id, 0xF000, 0xF001, 0xF002, VOCABULARY.vision_end_id, 65]
    )
    assert stretches_of(ids, VOCABULARY, 8, PROMPTS.sizes) == [(0, 1), (1, 8), (9, 1)]
    with pytest.raises(UserError, match="raise data.sequence_length"):
        stretches_of(ids, VOCABULARY, 7, PROMPTS.sizes)
    document = [(12, PICTURE + 3 * SHAPE), (4, 0)]
    wide = SourceLengths("a", 1.0, index_of([document]))
    fits = {
        size: len(RowPlan([wide], PROMPTS, TaskShares(0.6, 0.2, False), RowSize(size, 1), 0).too_long(0))
        for size in (12 + 3 + 4 + 6 + 4, 12 + 3 + 4 + 6 + 5)
    }
    assert list(fits.values()) == [
        1,
        0,
    ]  # picture, markers and end, caption, " Draw!", "1*12", and the room for rounding up


def test_equal_numbers_of_codes_in_other_shapes_share_no_noise():
    generator = numpy.random.default_rng(0)
    same, other = ([shown("user", "123", 1), shown("assistant", "456", shape)] for shape in (1, 2))
    noisy = [replace_shared_codes(parts, 10, 1.0, generator) for parts in [other] * 5 + [same] * 5]
    changed = [
        any((a.codes != b.codes).any() for a, b in zip(found, parts))
        for found, parts in zip(noisy, [other] * 5 + [same] * 5)
    ]
    assert not any(changed[:5]) and any(changed[5:])


def test_the_set_of_shapes_is_part_of_the_plan_and_squares_are_planned_as_before():
    index = index_of([[(4, PICTURE), (3, 0)]])

    def fingerprint(templates: PromptTemplates) -> str:
        tokenized = tokenize_prompts(markup, VOCABULARY, templates)
        return RowPlan(
            [SourceLengths("a", 1.0, index)], tokenized, TaskShares(0.5, 0.2, False), RowSize(64, 4), 0
        ).fingerprint

    square = dataclasses.replace(TEMPLATES, shapes=())
    turned = dataclasses.replace(TEMPLATES, shapes=(GRIDS[0], *reversed(GRIDS[1:])))
    assert len({fingerprint(templates) for templates in (TEMPLATES, square, turned)}) == 3
    assert (
        fingerprint(square) == "e0b484e4ca00e459cb93912256808541f1be00037f524341684f16a55b0664ad"
    )  # as before there were shapes


def manifest(shapes: list | None = None, fit: str | None = None, pictures: int = 3) -> dict:
    vq = {"fingerprint": "f", "codebook_size": 10, "downsample": 8, "image_size": 16}
    vq |= ({"shapes": shapes} if shapes else {}) | ({"fit": fit} if fit else {})
    return {"vq": vq, "tokenizer": {"sha256": "t"}, "counts": {"pictures": pictures}}


def test_sources_of_one_set_and_squares_beside_it():
    shaped, square, text = manifest([[2, 2], [1, 3]]), manifest(), manifest(fit="pad", pictures=0)
    check_sources([square, shaped, text], VOCABULARY)
    assert setup.prompt_templates(TEMPLATES, [square, shaped]).shapes == ((2, 2), (1, 3))
    assert setup.prompt_templates(TEMPLATES, [square, text]).shapes == ()
    assert setup.prompt_templates(TEMPLATES, [manifest(fit="pad")]).fit == "pad"
    with pytest.raises(UserError, match=r"different sets of shapes \(2\*2, 1\*3 and 2\*2, 3\*1\)"):
        check_sources([shaped, manifest([[2, 2], [3, 1]])], VOCABULARY)
    with pytest.raises(UserError, match="some padded"):
        check_sources([shaped, manifest(fit="pad")], VOCABULARY)
    templates = setup.prompt_templates(TEMPLATES, [square])
    setup.check_shapes("held", square, templates)
    setup.check_shapes("held", square, TEMPLATES)
    with pytest.raises(UserError, match=r"held has pictures of 2\*2, 1\*3 codes .* the model knows 2\*2: shard"):
        setup.check_shapes("held", shaped, templates)


def test_rows_of_a_dataset_hold_each_picture_with_its_size(shaped_data: TinyData, tmp_path):
    config = load_config(write_config(shaped_data, tmp_path / "run"), ["data.code_noise=0"])
    data = Data(config, ProcessRanks())
    assert len(data.templates.shapes) == 9 and data.templates.grid == (4, 4)
    vocabulary, dataset = data.model_config.vocabulary, open_dataset(shaped_data.train)
    seen = set()
    for number in range(20):
        row, pieces = data.train[number], data.train.plan.row(number)
        ids, at = row.ids[row.to_document].numpy(), 0
        for piece in pieces:
            sample, document = dataset[piece.document], ids[at : at + piece.length]
            at += piece.length
            start = int(numpy.flatnonzero(document == vocabulary.vision_start_id)[0])
            rows, columns = sample["grids"].tolist()
            words = data.encode(f"{rows}*{columns}")
            assert document[start - len(words) : start].tolist() == list(words)
            codes = document[vocabulary.is_code(document)] - vocabulary.image_token_offset
            assert numpy.array_equal(codes, sample["codes"]) and len(codes) == rows * columns
            seen.add((rows, columns))
    assert seen == set(data.templates.shapes)


@pytest.fixture(scope="module")
def shaped_run(commands: CommandServer, shaped_data: TinyData, tmp_path_factory):
    """A finished run on pictures of nine shapes."""
    folder = tmp_path_factory.mktemp("shaped-run") / "run"
    done = commands.run("pretrain/train.py", "--config", write_config(shaped_data, folder))
    assert done.code == 0, done.err
    return folder


def test_a_run_learns_from_all_shapes_and_says_which(shaped_run):
    metrics = read_metrics(shaped_run)
    assert [line["step"] for line in metrics if "train/loss" in line] == list(range(1, STEPS + 1))
    templates = json.loads((checkpoint.find(shaped_run) / "unix_prompts.json").read_text())
    assert len(templates["shapes"]) == 9 and "fit" not in templates


def test_workers_ranks_and_a_kill_change_no_loss(commands: CommandServer, shaped_data: TinyData, shaped_run, tmp_path):
    words = ["--config", write_config(shaped_data, tmp_path / "run")]
    hook = ("tests.pretrain.kill_points", "after_an_update", 3)
    assert commands.start("pretrain/train.py", *words, hook=hook).wait().code != 0
    done = commands.run("pretrain/train.py", *words, "data.workers=2")
    assert done.code == 0, done.err
    assert read_metrics(tmp_path / "run") == read_metrics(shaped_run)


def test_a_run_of_squares_is_not_gone_on_with(commands: CommandServer, tiny_data: TinyData, shaped_data, shaped_run):
    path = write_config(dataclasses.replace(shaped_data, train=tiny_data.train), shaped_run)
    done = commands.run("pretrain/train.py", "--config", path)
    assert done.code == 2 and "has pictures of 4*4, 3*4" in done.err  # its held-out pictures
