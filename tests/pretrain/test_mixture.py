"""The walk through sources: shares of tokens, no document again before all were there, few shards at a time."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import mixture, rows
from pretrain.mixture import Mixture, MixtureStage, SourceLengths, tokens_of
from pretrain.rows import RowPlan, RowSize
from pretrain.system.errors import UserError
from pretrain.tasks import TaskShares
from tests.pretrain.test_rows import PROMPTS, SHARES, epoch, index_of, plan, source
from tokenization.sample import PICTURE, ROLE, WORDING


def texts(documents: int, length: int, shards: int = 1, weight: float = 1.0, share: float = 0.0) -> SourceLengths:
    return SourceLengths(f"{documents}-{length}", weight, index_of([[(length, 0)]] * documents, shards=shards), share)


def walked(mixed: Mixture, blocks: range) -> list[numpy.ndarray]:
    """The documents of each source in these blocks, one after the other."""
    columns = zip(*(mixed.documents(block) for block in blocks), strict=True)
    return [numpy.concatenate(column) for column in columns]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 6), st.floats(0.1, 3)), min_size=1, max_size=3),
    st.integers(5, 40),
)
def test_no_document_again_before_all_others_were_there(sources, block_documents):
    sources = [texts(count, 5, min(shards, count), weight) for count, shards, weight in sources]
    if sum(entry.weight * len(entry.index) for entry in sources) < 1:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_DOCUMENTS", block_documents)
        mixed = Mixture(sources, (), "run")
        last = next(block for block in range(10_000) if mixed.epoch_of(block) == 4)
        for documents, entry in zip(walked(mixed, range(last)), sources):
            size = len(entry.index)
            assert len(documents) == int(entry.weight * size * 4 + 1e-6)  # four epochs, to the document
            for low in range(0, len(documents), size):
                assert len(set(documents[low : low + size].tolist())) == len(documents[low : low + size])
        assert max(sum(map(len, mixed.documents(block))) for block in range(last)) <= block_documents + len(sources)
        jumping = Mixture(sources, (), "run")
        for block in (last - 1, 0):
            for found, again in zip(jumping.documents(block), mixed.documents(block)):
                assert numpy.array_equal(found, again)


def test_shares_are_of_tokens_and_stages_come_first():
    sources = [texts(1000, 10, share=0.25), texts(100, 300, share=0.75)]
    stages = [MixtureStage(20_000, (1, 1)), MixtureStage(5_000, (0, 1))]
    mixed = Mixture(sources, stages, "run")
    found = []
    for span in range(4):
        blocks = [block for block in range(30) if mixed.epoch_of(block) == span]
        taken = walked(mixed, range(blocks[0], blocks[-1] + 1))
        found.append([len(taken[0]) * 10, len(taken[1]) * 300])
    assert [sum(tokens) for tokens in found] == pytest.approx([20_000, 5_000, 40_000, 40_000], rel=0.02)
    assert [tokens[0] / sum(tokens) for tokens in found] == pytest.approx([0.5, 0, 0.25, 0.25], abs=0.01)


def kinds_of_documents(shares: tuple[float, ...]) -> list[SourceLengths]:
    """Captions, text, conversations and edits, so short that prompts and marks of turns are most of what is trained on."""
    asked, answer = 2 * ROLE, 3 * ROLE
    entries = {
        "caption_pair": [[(16, PICTURE), (3 + n % 5, 0), (9, WORDING)] for n in range(900)],
        "text": [[(5 + n % 70, 0)] for n in range(2000)],
        "conversation": [[(4, asked), (2 + n % 9, answer)] * (1 + n % 3) for n in range(1500)],
        "edit": [[(16, PICTURE + asked), (6, asked), (8, asked + WORDING), (16, PICTURE + answer)] for _ in range(400)],
    }
    return [
        SourceLengths(kind, 1.0, index_of(documents, [kind] * len(documents), shards=4), share)
        for (kind, documents), share in zip(entries.items(), shares, strict=True)
    ]


def test_kinds_are_mixed_in_their_shares_of_tokens_over_a_run():
    """Counted in the rows of two epochs, as trained on; by what is stored, conversations would get half as much again."""
    shares = (0.4, 0.1, 0.3, 0.2)
    sources = kinds_of_documents(shares)
    tasks = TaskShares(0.6, 0.1, False, drop_instruction=0.1, drop_source=0.1, drop_both=0.1)
    planned = RowPlan(sources, PROMPTS, tasks, RowSize(512, 8), 0)
    tokens, number = numpy.zeros(len(sources)), 0
    while planned.epoch_of(number) < 2:
        for piece in planned.row(number):
            tokens[piece.source] += piece.length
        number += 1
    assert tokens / tokens.sum() == pytest.approx(shares, abs=0.005)
    everything = [planned._tokens(source) for source in range(len(sources))]
    assert tokens.sum() == pytest.approx(2 * sum(everything), rel=0.01)


def test_tokens_of_a_large_source_are_known_from_some_of_its_documents(monkeypatch: pytest.MonkeyPatch):
    planned = RowPlan(kinds_of_documents((0.4, 0.1, 0.3, 0.2)), PROMPTS, SHARES, RowSize(512, 8), 0)
    whole = [planned._tokens(source) for source in range(4)]
    monkeypatch.setattr(rows, "COUNTED", 300)
    assert [planned._tokens(source) for source in range(4)] == pytest.approx(whole, rel=0.04)


def test_the_tokens_of_wordings_are_their_mean():
    document = [(16, PICTURE), (4, 0), (8, WORDING)]
    index = index_of([document, [(5, 0)], document])
    assert tokens_of(index) == 2 * (16 + 6) + 5
    assert tokens_of(index, numpy.array([1, 2])) == 5 + 16 + 6


def test_a_block_touches_few_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixture, "BLOCK_DOCUMENTS", 100)
    mixed = Mixture([texts(4000, 5, shards=80), texts(400, 5, shards=8)], (), "run")
    orders = []
    for block in range(44):
        shards = [set((found // 50).tolist()) for found in mixed.documents(block)]
        assert len(shards[0]) <= 4 and len(shards[1]) <= 2
        orders.append(sorted(shards[0]))
    assert sorted({shard for shards in orders for shard in shards}) == list(range(80))
    assert orders != sorted(orders)  # and the shards come in no order


def test_rows_of_many_blocks_hold_every_document_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixture, "BLOCK_DOCUMENTS", 70)
    planned = plan([source(400, 1, "a"), source(100, 2, "b", weight=2.0)])
    rows = epoch(planned)
    used = Counter((piece.source, piece.document) for row in rows for piece in row)
    assert used == {**{(0, d): 1 for d in range(400)}, **{(1, d): 2 for d in range(100)}}
    assert planned.block_of(len(rows) - 1) == 8 and planned.epoch_of(len(rows)) == 1
    again = plan([source(400, 1, "a"), source(100, 2, "b", weight=2.0)])
    assert [again.row(index) for index in (len(rows) + 3, 50, 0)] == [planned.row(len(rows) + 3), rows[50], rows[0]]
    changed = plan([source(400, 1, "a"), source(100, 2, "b", weight=1.5)])
    assert changed.fingerprint != planned.fingerprint


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60).flatmap(lambda count: st.lists(st.booleans(), min_size=count, max_size=count)),
    st.integers(1, 6),
    st.integers(3, 20),
)
def test_documents_that_are_left_out_never_come_and_others_as_often_as_before(kept, shards, block_documents):
    kept = [True, *kept]
    index = index_of([[(16, PICTURE), (4 + number, 0), (8, WORDING)] for number in range(len(kept))], shards=shards)
    index = replace(index, kept=numpy.array(kept, numpy.uint8))
    index = pickle.loads(pickle.dumps(index))
    used = numpy.flatnonzero(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK_DOCUMENTS", block_documents)
        mixed = Mixture([SourceLengths("some", 3.0, index)], (), "run")
        last = next(block for block in range(1000) if mixed.epoch_of(block) == 1)
        (documents,) = walked(mixed, range(last))
    for low in range(0, len(documents), len(used)):
        assert sorted(documents[low : low + len(used)].tolist()) == used.tolist()
    assert len(documents) == 3 * len(used)
    assert tokens_of(index) == sum(16 + (4 + number + 8) / 2 for number in used.tolist())


def test_mixtures_that_cannot_be():
    with pytest.raises(UserError, match="hold no documents"):
        Mixture([texts(0, 5)], (), "run")
    with pytest.raises(UserError, match="raise their weights"):
        Mixture([texts(5, 5, weight=0.01)], (), "run")
    for shares in ((1.0,), (0.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(UserError, match="2 data sources: give one for each"):
            Mixture([texts(5, 5), texts(5, 6)], [MixtureStage(100, shares)], "run")
    with pytest.raises(UserError, match="0 for an empty one"):
        Mixture([texts(5, 5, share=0.5), texts(0, 6, share=0.5)], (), "run")
