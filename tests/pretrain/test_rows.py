"""Planned rows: pure functions of their inputs, no document lost or cut, padding where it belongs."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import prompts
from model.prompts import DEFAULT_TEMPLATES
from model.vocabulary import IGNORED, Vocabulary
from pretrain.packing import pack, pack_mixed
from pretrain.row_tensors import assemble
from pretrain.rows import RowPlan, RowSize, SourceLengths, pair_of_index, parts_of_index
from pretrain.system.errors import UserError
from pretrain.tasks import (
    IMAGE_TO_TEXT,
    IN_ORDER,
    TEXT,
    TEXT_TO_IMAGE,
    TURNS,
    UNCONDITIONAL,
    TaskShares,
    build_document,
    build_ordered,
    document_lengths,
    ordered_lengths,
    picture_array,
    replace_codes,
    stretches_of,
    tokenize_prompts,
)
from tokenization.lengths import LengthIndex
from tokenization.readers.document import KINDS
from tokenization.sample import PICTURE, ROLE, SHAPE, WORDING

VOCABULARY = Vocabulary(image_token_offset=300, codebook_size=64, vision_start_id=290, vision_end_id=291, eos_id=292)
SHARES = TaskShares(text_to_image=0.6, unconditional=0.2, train_on_prompts=False)
PROMPTS = tokenize_prompts(lambda text: list(text.encode()), VOCABULARY, DEFAULT_TEMPLATES)


def source(documents: int = 60, seed: int = 0, fingerprint: str = "a", weight: float = 1.0) -> SourceLengths:
    generator = numpy.random.default_rng(seed)
    entries = []
    for has_picture in generator.random(documents) < 0.7:
        texts = [(int(length), WORDING) for length in generator.integers(1, 12, generator.integers(1, 4))]
        texts[0] = (texts[0][0], 0)
        entries.append([(16, PICTURE), *texts] if has_picture else texts[:1])
    return SourceLengths(fingerprint, weight, index_of(entries, shards=3))


def index_of(entries: list[list[tuple[int, int]]], kinds: list[str] | None = None, shards: int = 1) -> LengthIndex:
    """The index of documents with these (length, layout) entries; captioned pictures or text if no kinds are given."""
    kinds = kinds or ["caption_pair" if document[0][1] & PICTURE else "text" for document in entries]
    flat = [entry for document in entries for entry in document]
    return LengthIndex(
        offsets=numpy.cumsum([0, *map(len, entries)]),
        lengths=numpy.array([length for length, _ in flat], dtype=numpy.int32),
        layout=numpy.array([layout for _, layout in flat], dtype=numpy.uint8),
        kinds=numpy.array([KINDS.index(kind) for kind in kinds], dtype=numpy.uint8),
        shard_starts=numpy.linspace(0, len(entries), shards + 1).astype(numpy.int64),
    )


def plan(sources=None, seed: int = 0, size: RowSize = RowSize(160, 4)) -> RowPlan:
    return RowPlan(sources or [source()], PROMPTS, SHARES, size, seed)


def test_rows_are_a_pure_function_of_their_index():
    forwards = [plan().row(i) for i in range(60)]
    jumping = plan()
    assert [jumping.row(i) for i in (59, 3, 40, 0)] == [forwards[i] for i in (59, 3, 40, 0)]
    assert forwards != [plan(seed=1).row(i) for i in range(60)]
    assert forwards != [plan([source(fingerprint="b")]).row(i) for i in range(60)]


def test_every_document_once_an_epoch_and_tasks_in_their_shares():
    sources = [source(400, 1, "a"), source(100, 2, "b", weight=2.0)]
    planned = plan(sources)
    last = planned.epoch_of(0)
    rows, index = [], 0
    while planned.epoch_of(index) == last:
        rows.append(planned.row(index))
        index += 1
    pieces = [piece for row in rows for piece in row]
    used = Counter((piece.source, piece.document) for piece in pieces)
    assert used == {**{(0, d): 1 for d in range(400)}, **{(1, d): 2 for d in range(100)}}
    kinds = [sources[piece.source].index.kinds[piece.document] for piece in pieces]
    pictures = [piece.task for piece, kind in zip(pieces, kinds) if KINDS[kind] == "caption_pair"]
    assert abs(pictures.count(IMAGE_TO_TEXT) / len(pictures) - 0.4) < 0.08
    assert abs(pictures.count(UNCONDITIONAL) / len(pictures) - 0.12) < 0.06
    assert all(piece.task == TEXT for piece, kind in zip(pieces, kinds) if KINDS[kind] == "text")
    padding = 1 - sum(piece.length for piece in pieces) / (160 * len(rows))
    assert padding < 0.1  # pictures with their prompts are long for these rows


def test_the_first_text_is_drawn_as_often_as_asked():
    sources = [source(600, 3)]
    texts = numpy.diff(sources[0].index.offsets) - 1
    for share in (0.0, 0.5, 1.0):
        planned = RowPlan(sources, PROMPTS, TaskShares(0.6, 0.2, False, first_text=share), RowSize(160, 4), 0)
        pieces = [piece for index in range(60) for piece in planned.row(index) if texts[piece.document] == 3]
        first = sum(piece.text == 0 for piece in pieces) / len(pieces)
        assert abs(first - (share + (1 - share) / 3)) < 0.15


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=300))
def test_packing_keeps_every_piece_and_every_row_within_its_size(lengths):
    lengths = numpy.array(lengths)
    packing = pack(lengths, 120)
    row = packing.row_of_pieces(lengths)
    used = numpy.bincount(row, lengths, minlength=packing.row_count)
    assert len(used) == packing.row_count and used.max() <= 120 and used.min() > 0
    assert packing.row_count <= max(1, 1.7 * lengths.sum() / 120 + 1)  # first fit decreasing is never worse
    assert (pack(lengths[::-1], 120).row_of_pieces(lengths[::-1])[::-1] >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=300))
def test_mixed_packing_keeps_every_piece_and_every_row_within_its_size(lengths):
    lengths = numpy.array(lengths)
    row, rows = pack_mixed(lengths, 120)
    used = numpy.bincount(row, lengths, minlength=rows)
    assert len(used) == rows and used.max() <= 120 and used.min() > 0
    assert rows <= 2 * lengths.sum() / 120 + 1  # two rows that could be one are never left


def test_rows_hold_short_and_long_in_fair_shares():
    """Best fit alone fills a row with equal lengths: pictures of long names only, and then of short ones."""
    generator = numpy.random.default_rng(0)
    lengths = generator.permutation(numpy.repeat([70, 80, 90], 3000))
    row, rows = pack_mixed(lengths, 2040)
    held = numpy.stack([numpy.bincount(row[lengths == length], minlength=rows) for length in (70, 80, 90)], axis=1)
    fair = held[(held.min(axis=1) >= 2) & (held.max(axis=1) <= 16)]
    assert len(fair) > 0.95 * rows  # of 25 or so; by chance alone a row is outside in 0.7 % of the cases
    assert 1 - lengths.sum() / (2040 * rows) < 0.015


def test_rows_come_in_random_order_and_not_in_that_of_packing():
    """Packing makes the fullest rows, and those of the longest documents, first: training would end on short ones."""
    planned, rows = plan([source(2000)]), 0
    while planned.epoch_of(rows) == 0:
        rows += 1
    filled = [sum(segment.length for segment in planned.row(number)) for number in range(rows)]
    longest = [max(segment.length for segment in planned.row(number)) for number in range(rows)]
    for of_row in (filled, longest):
        assert abs(numpy.corrcoef(numpy.arange(rows), of_row)[0, 1]) < 0.25  # 6 of its standard errors; packed -0.5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9), st.integers(0, 3), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans(), st.data()
)
def test_a_captioned_picture_or_a_text_is_read_as_its_parts_are(codes, shape, texts, pictured, data):
    entries = [(length, WORDING * bool(number)) for number, length in enumerate(texts)]
    entries = [*[(codes, PICTURE + shape * SHAPE)] * pictured, *entries]
    index = index_of([[(3, PICTURE), (2, 0)], entries])
    ids, all_codes = numpy.arange(sum(texts)), numpy.arange(100, 100 + codes * pictured)
    text = data.draw(st.integers(0, len(texts) - 1))
    parts = parts_of_index(index, 1, ids, all_codes)
    caption, found, number = pair_of_index(index, 1, text, ids, all_codes)
    assert caption.tolist() == parts[-1].wordings[text][1].tolist()
    wanted = (parts[0].codes.tolist(), parts[0].shape) if pictured else ([], 0)
    assert (found.tolist(), number) == wanted
    without = pair_of_index(index, 1, text)  # no shard is read
    assert [len(without[0]), len(without[1]), without[2]] == [len(caption), len(found), number]
    if pictured and codes:
        with pytest.raises(ValueError, match="holds"):
            pair_of_index(index, 1, text, ids, all_codes[:-1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([1, 2, 4, 8]))
def test_whatever_fits_the_capacity_fits_with_both_modalities_rounded_up(text, vision, multiple):
    size = RowSize(128, multiple)
    text = min(text, size.capacity)
    vision = min(vision, size.capacity - text)
    text_slots, vision_slots = size.padded(text, vision)
    assert text_slots + vision_slots == 128 and text <= text_slots and vision <= vision_slots
    assert text_slots % multiple == 0 and vision_slots % multiple == 0 and min(text_slots, vision_slots) >= multiple


def epoch(planned: RowPlan, number: int = 0) -> list:
    """All rows of an epoch or stage."""
    rows, index = [], 0
    while planned.epoch_of(index) <= number:
        if planned.epoch_of(index) == number:
            rows.append(planned.row(index))
        index += 1
    return rows


def test_long_text_is_split_without_loss_and_pictures_never():
    size = RowSize(64, 4)
    long = SourceLengths("a", 1.0, index_of([[(149, 0)]]))
    stretches = sorted((piece.start, piece.length) for row in epoch(plan([long], size=size)) for piece in row)
    assert stretches == [(0, 60), (60, 60), (120, 30)]
    with pytest.raises(UserError, match="or none that a row of 64 tokens can hold: .* raise data.sequence_length"):
        plan([SourceLengths("a", 1.0, index_of([[(70, PICTURE), (3, 0)]]))], size=size).row(0)


ENTRIES = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0, PICTURE, WORDING]), st.sampled_from([1, 2, 3])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.booleans(), st.integers(0, 2**16 - 1))
def test_documents_in_order_have_the_planned_length_and_are_cut_between_pictures(entries, turns, draw):
    """Any order of texts, wordings and pictures, with or without turns: planned without a shard, built with one."""
    document: list[tuple[int, int]] = []
    for length, what, role in entries:
        if what == WORDING and document and not document[-1][1] & PICTURE:
            document.append((length, document[-1][1] | WORDING))
        else:
            document.append((length, (PICTURE if what == PICTURE else 0) + (role * ROLE if turns else 0)))
    kind, task = ("conversation", TURNS) if turns else ("interleaved", IN_ORDER)
    lengths, layout = (numpy.array(column) for column in zip(*document))
    planned = ordered_lengths(
        PROMPTS,
        numpy.array([task] * 2),
        numpy.array([draw, draw + 1]),
        numpy.array([len(document)] * 2),
        numpy.tile(lengths, 2),
        numpy.tile(layout, 2),
    )
    source = SourceLengths("a", 1.0, index_of([document], [kind]))
    rows = epoch(plan([source], size=RowSize(56, 4)))
    pieces = sorted((piece for row in rows for piece in row), key=lambda piece: piece.start)
    parts = plan([source]).parts(pieces[0])
    ids, labels = build_ordered(PROMPTS, task, draw, parts)
    assert planned.tolist() == [len(ids), len(build_ordered(PROMPTS, task, draw + 1, parts)[0])]
    assert {piece.task for piece in pieces} == {task}
    whole, _ = build_ordered(PROMPTS, task, pieces[0].text, parts)
    assert [piece.start for piece in pieces] == [0, *numpy.cumsum([piece.length for piece in pieces])[:-1].tolist()]
    assert sum(piece.length for piece in pieces) == len(whole)
    for piece in pieces[1:]:
        assert not VOCABULARY.is_code(whole[piece.start]) and whole[piece.start] != VOCABULARY.vision_end_id
    learned = labels != IGNORED
    assert (labels[learned] == ids[1:][learned[:-1]]).all() and labels[-1] == IGNORED
    if not turns:
        assert learned[:-1].all() and ids[-1] == VOCABULARY.eos_id
    else:
        answers = [part for part in parts if part.role == "assistant"]
        codes = sum(len(part.codes) for part in answers if part.codes is not None)
        assert VOCABULARY.is_code(labels).sum() == codes  # the pictures of answers, and no others


def test_a_picture_that_no_row_can_hold_is_refused():
    ids = numpy.array([290, *range(300, 340), 291, 5, 6])
    assert stretches_of(ids, VOCABULARY, 42) == [(0, 42), (42, 2)]
    with pytest.raises(UserError, match="raise data.sequence_length"):
        stretches_of(ids, VOCABULARY, 41)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([TEXT, TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL]),
    st.integers(0, 2**16 - 1),
    st.lists(st.integers(0, 280), min_size=1, max_size=20),
    st.integers(1, 20),
    st.booleans(),
)
def test_a_document_has_the_length_that_was_planned(task, wording, caption, codes, on_prompts):
    codes = numpy.arange(0 if task == TEXT else codes)
    ids, labels = build_document(PROMPTS, task, wording, numpy.array(caption), codes, on_prompts)
    text, vision = document_lengths(
        PROMPTS, *(numpy.array([value]) for value in (task, wording, len(caption), len(codes)))
    )
    visual = VOCABULARY.is_visual(ids)
    assert (len(ids), visual.sum()) == (text[0] + vision[0], vision[0])
    assert labels[-1] == IGNORED and ids[-1] == VOCABULARY.eos_id
    learned = labels != IGNORED
    assert (labels[learned] == ids[1:][learned[:-1]]).all()
    if task in (TEXT_TO_IMAGE, UNCONDITIONAL):
        assert VOCABULARY.is_code(labels).sum() == len(codes)  # every code is a target, the first one too
        assert on_prompts or learned.sum() == len(codes) + 2
    elif task == IMAGE_TO_TEXT:
        assert labels[learned].tolist() == [*caption, VOCABULARY.eos_id]  # the first word of a caption is learned
    else:
        assert labels[learned].tolist() == [*caption[1:], VOCABULARY.eos_id]


def test_codes_are_replaced_and_nothing_else():
    codes = numpy.arange(64)
    ids, labels = build_document(PROMPTS, TEXT_TO_IMAGE, 0, numpy.array([5, 6]), codes, False)
    is_code = VOCABULARY.is_code(ids)
    generator = numpy.random.default_rng(0)
    parts = []
    for _ in range(400):
        noisy = replace_codes(ids, VOCABULARY, 0.75, generator)
        assert (noisy[~is_code] == ids[~is_code]).all()
        assert VOCABULARY.is_code(noisy[is_code]).all() and (noisy[is_code] < 300 + 64).all()
        parts.append((noisy != ids)[is_code].mean())
    parts = numpy.array(parts)
    assert abs((parts == 0).mean() - 0.25) < 0.08  # untouched
    assert abs(parts[parts > 0].mean() - 2 / 3) < 0.05 and parts.max() > 0.9  # the others, from none to all
    assert labels[is_code][:-1].tolist() == ids[is_code][1:].tolist()  # the true codes stay what is learned


def test_a_row_is_one_permutation_with_padding_apart():
    documents = [
        build_document(PROMPTS, task, 0, numpy.array([1, 2, 3]), numpy.arange(6), False)
        for task in (TEXT_TO_IMAGE, IMAGE_TO_TEXT)
    ]
    row = assemble(7, documents, VOCABULARY, RowSize(160, 8))
    in_order = row.ids[row.to_document].numpy()
    whole = numpy.concatenate([ids for ids, _ in documents])
    assert (in_order[: len(whole)] == whole).all()
    text = sum(row.lengths["text"])
    assert not VOCABULARY.is_visual(row.ids[:text]).any() and VOCABULARY.is_visual(row.ids[text:]).all()
    assert text % 8 == 0 and len(row.ids) == 160 and row.padding == 160 - len(whole)
    assert sum(row.lengths["document"]) == 160
    assert [t + v for t, v in zip(row.lengths["text"], row.lengths["vision"])] == row.lengths["document"]
    positions = row.positions[row.to_document].numpy()
    assert (positions[: len(documents[0][0])] == numpy.arange(len(documents[0][0]))).all()
    assert positions[len(documents[0][0])] == 0  # positions restart at each document
    labels = row.labels[row.to_document]
    assert (labels[len(whole) :] == IGNORED).all()


@pytest.mark.parametrize("tokens, multiple", [(100, 8), (8, 8), (64, 0)])
def test_impossible_row_sizes_are_refused(tokens, multiple):
    with pytest.raises(UserError, match="row_multiple"):
        plan(size=RowSize(tokens, multiple))


@given(st.lists(st.integers(0, 2**16 - 1), max_size=40))
def test_a_picture_in_an_array_is_that_of_the_prompts(codes):
    found = picture_array(numpy.array(codes, numpy.uint16), VOCABULARY)
    assert found.dtype == numpy.int64 and found.tolist() == prompts.picture_ids(codes, VOCABULARY)


@pytest.mark.parametrize("task", [TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL])
def test_documents_are_put_together_as_prompts_are(task):
    caption, codes = numpy.array([5, 6, 7], numpy.uint32), numpy.array([1, 2, 3], numpy.uint16)
    for wording in range(4):
        ids, _ = build_document(PROMPTS, task, wording, caption, codes, False)
        templates = PROMPTS.templates
        if task == IMAGE_TO_TEXT:
            number = wording % len(templates.image_to_text)
            start = prompts.image_to_text_ids(codes, PROMPTS.encode, VOCABULARY, templates, number)
        elif task == TEXT_TO_IMAGE:
            number = wording % len(templates.text_to_image)
            start = prompts.text_to_image_ids(caption, PROMPTS.encode, VOCABULARY, templates, number)
        else:
            start = prompts.unconditional_ids(PROMPTS.encode, VOCABULARY, templates)
        assert ids[: len(start)].tolist() == start


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 90)), min_size=1, max_size=30), st.booleans())
def test_what_no_row_can_hold_is_known_from_the_index_and_left_out(sizes, in_order):
    """A captioned picture, and a picture between texts: never cut, so a draw that is too long has no place."""
    entries = [[(codes, PICTURE), (tokens, 0)] for tokens, codes in sizes]
    kind = "interleaved" if in_order else "caption_pair"
    planned = plan([SourceLengths("a", 1.0, index_of(entries, [kind] * len(entries)))], size=RowSize(84, 4))
    found = set(planned.too_long(0).tolist())
    longest = max(len(PROMPTS.encode(piece)) for piece in PROMPTS.templates.image_to_text)
    wordings = [
        sum(len(PROMPTS.encode(part)) for part in w.split("{caption}")) for w in PROMPTS.templates.text_to_image
    ]
    most, alone = max(longest, *wordings), len(PROMPTS.encode(PROMPTS.templates.unconditional))
    for number, (tokens, codes) in enumerate(sizes):
        whole = codes + 2 if in_order else codes + 3 + max(tokens + most, alone)
        assert (number in found) == (whole > 80)
    if len(found) < len(sizes):
        trained = {piece.document for row in (planned.row(number) for number in range(40)) for piece in row}
        assert set(range(len(sizes))) - found <= trained
        assert all(sum(piece.length for piece in planned.row(number)) <= 80 for number in range(40))


def test_a_plan_knows_the_tokens_of_all_documents():
    planned = plan(
        [SourceLengths("a", 1.0, index_of([[(9, 0)]] * 20)), SourceLengths("b", 1.0, index_of([[(4, 0)]] * 5))]
    )
    assert planned.tokens() == 20 * 10 + 5 * 5  # texts and the ends of their documents
