"""Codes of an edit that are random, and the same in all of its pictures: what they replace, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy
import pyarrow
import pytest

from model.prompts import DEFAULT_TEMPLATES
from model.vocabulary import Vocabulary
from pretrain.loader import RowDataset, RowSource
from pretrain.rows import RowSize
from pretrain.tasks import TaskShares, replace_shared_codes, tokenize_prompts
from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData
from tests.tokenization import kinds
from tests.tokenization.corpora import picture
from tokenization.sample import Part
from tokenization.shards import open_dataset

VOCABULARY = Vocabulary(image_token_offset=1000, codebook_size=64, vision_start_id=990, vision_end_id=991, eos_id=992)
PROMPTS = tokenize_prompts(lambda text: list(text.encode()), VOCABULARY, DEFAULT_TEMPLATES)


def parts(*pictures: numpy.ndarray) -> list[Part]:
    words = Part("user", None, None, ((0, numpy.array([5, 6])),))
    found = [Part("user", pictures[0], (4, len(pictures[0]) // 4), ())]
    for codes in pictures[1:]:
        found += [words, Part("assistant", codes, (4, len(codes) // 4), ())]
    return found


def test_some_places_are_random_and_the_same_in_every_picture():
    generator = numpy.random.default_rng(0)
    before, after, last = (
        numpy.full(64, 70),
        numpy.full(64, 71),
        numpy.full(64, 72),
    )  # of no codebook: noise is told apart
    changed = []
    for _ in range(600):
        found = replace_shared_codes(parts(before, after, last), 64, 0.5, generator)
        assert found[1] == found[3] and found[1].wordings[0][1].tolist() == [5, 6]
        source, *targets = (part.codes for part in found if part.codes is not None)
        noisy = source != 70
        assert (source[noisy] < 64).all()
        for target, true in zip(targets, (71, 72)):
            assert (target[noisy] == source[noisy]).all() and (target[~noisy] == true).all()
        changed.append(noisy.mean())
    assert before.tolist() == [70] * 64  # the shard's own arrays are left as they are
    changed = numpy.array(changed)
    assert abs((changed == 0).mean() - 0.5) < 0.08 and abs(changed[changed > 0].mean() - 0.5) < 0.06
    assert changed.max() > 0.9


def test_pictures_of_several_sizes_are_left_alone():
    found = replace_shared_codes(parts(numpy.full(64, 70), numpy.full(16, 71)), 64, 1.0, numpy.random.default_rng(0))
    assert [set(part.codes.tolist()) for part in found if part.codes is not None] == [{70}, {71}]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, commands: CommandServer, tiny_data: TinyData) -> dict[str, Path]:
    """Edits whose target is their source, and conversations about two equal pictures."""
    folder = tmp_path_factory.mktemp("shared-noise")
    pairs = [[picture(seed), picture(seed)] for seed in range(6)]
    tables = {
        "edit": pyarrow.table({"image_list": pairs, "instruction_list": [[["keep it"]]] * 6}),
        "conversation": pyarrow.table(
            {"images": pairs, "texts": [[{"user": "<image><image>Equal?", "assistant": "Yes"}]] * 6}
        ),
    }
    found = {}
    for kind, table in tables.items():
        found[kind] = folder / kind
        done = commands.run(
            "tokenization/shard_images.py",
            "--input",
            kinds.parquet(folder / f"{kind}.parquet", table),
            "--output",
            found[kind],
            "--vq",
            tiny_data.vq,
            "--tokenizer",
            tiny_data.tokenizer,
            "--workers",
            0,
        )
        assert done.code == 0, done.err
    return found


def codes_in_rows(folder: Path, shared_noise: float) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """First and second picture's codes of all documents of an epoch, as they are read; and the second's as learned."""
    shares = TaskShares(0.5, 0.1, False, shared_noise=shared_noise)
    dataset = RowDataset([RowSource(folder)], PROMPTS, shares, RowSize(256, 4), seed=0)
    read: list[numpy.ndarray] = []
    learned: list[numpy.ndarray] = []
    number = 0
    while dataset.plan.epoch_of(number) == 0:
        row = dataset[number]
        ids, labels = (values[row.to_document].numpy() for values in (row.ids, row.labels))
        start = 0
        for length in row.lengths["document"]:
            at = start + numpy.flatnonzero(VOCABULARY.is_code(ids[start : start + length]))
            if len(at) == 32:
                read.append(ids[at].reshape(2, 16) - 1000)
                learned.append(labels[at[16:] - 1] - 1000)
            start += length
        number += 1
    pairs = numpy.stack(read)
    return pairs[:, 0], pairs[:, 1], numpy.stack(learned)


def test_an_edit_learns_its_noise_from_its_source(shards):
    true = {document["codes"][:16].tobytes() for document in open_dataset(shards["edit"])}
    first, second, learned = codes_in_rows(shards["edit"], 1.0)
    assert len(first) == 6 and (first == second).all() and (second == learned).all()
    assert (
        len({codes.astype(numpy.uint16).tobytes() for codes in first} - true) >= 4
    )  # how many of the 16 are replaced is drawn, from none on
    first, second, learned = codes_in_rows(shards["edit"], 0.0)
    assert {codes.astype(numpy.uint16).tobytes() for codes in first} == true and (first == second).all()


def test_conversations_have_none(shards):
    true = {document["codes"][:16].tobytes() for document in open_dataset(shards["conversation"])}
    first, second, _ = codes_in_rows(shards["conversation"], 1.0)
    assert {codes.astype(numpy.uint16).tobytes() for codes in first} == true and (first == second).all()
