"""Pictures that another file has already: found as by going through all documents one by one, on any number of workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.mixture import Mixture, SourceLengths
from tests.tokenization.corpora import Command, captions, contents, jsonl, rejects_of, tar
from tests.tokenization.test_filters import drawn
from tokenization import duplicates
from tokenization.duplicates import masks, seen_before
from tokenization.filters import SeenPictures
from tokenization.shards import open_dataset

BASES = [0, 0xFFFF, 0x0123456789ABCDEF, 0xFEDCBA9876543210, 1 << 63]
HASHES = st.builds(
    lambda base, flips: base ^ sum(1 << bit for bit in flips),
    st.sampled_from(BASES),
    st.sets(st.sampled_from([0, 1, 7, 8, 31, 32, 62, 63]), max_size=5),
)
PICTURES = st.tuples(HASHES, st.tuples(*[st.sampled_from([0, 3, 6, 9, 255])] * 3))
DOCUMENTS = st.lists(st.lists(PICTURES, max_size=3), max_size=40)


def one_by_one(documents: list[np.ndarray], bits: int) -> list[int]:
    """The rule as it is told: a document goes if one that stayed shows what it shows."""
    seen, gone = SeenPictures(bits), []
    for number, pictures in enumerate(documents):
        if seen.find(pictures) is None:
            seen.add(pictures)
        else:
            gone.append(number)
    return gone


def arrays_of(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pictures = np.concatenate([np.zeros((0, 4), np.uint64), *documents])
    return (
        pictures[:, 0],
        pictures[:, 1:].astype(np.uint8),
        np.repeat(np.arange(len(documents), dtype=np.uint32), list(map(len, documents))),
    )


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.integers(0, 6) | st.just(64), st.sampled_from([3, 1 << 23]), st.sampled_from([1, 256]))
def test_the_same_documents_go_as_one_by_one(drawn_documents, bits: int, at_once: int, large: int):
    documents = [
        np.array([[whole, *colour] for whole, colour in pictures], np.uint64).reshape(-1, 4)
        for pictures in drawn_documents
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "AT_ONCE", at_once)
        patch.setattr(duplicates, "LARGE", large)
        assert seen_before(*arrays_of(documents), bits).tolist() == one_by_one(documents, bits)


@pytest.mark.parametrize("bits", [0, 1, 3, 4])
def test_the_same_documents_go_as_one_by_one_among_thousands(bits: int):
    generator = np.random.default_rng(bits)
    whole = generator.integers(0, 2**64, 3000, dtype=np.uint64)
    for number in range(400, 3000, 3):  # chains: a copy of a copy, a bit or two further off each time
        flips = generator.integers(0, 64, generator.integers(0, 3)).astype(np.uint64)
        whole[number] = whole[generator.integers(number - 400, number)] ^ np.bitwise_or.reduce(np.uint64(1) << flips)
    colours = generator.integers(100, 106, (3000, 3)).astype(np.uint64)
    documents = np.split(np.concatenate([whole[:, None], colours], axis=1), np.sort(generator.integers(0, 3000, 2000)))
    found = seen_before(*arrays_of(documents), bits)
    assert found.tolist() == one_by_one(documents, bits) and len(found) > 200


def test_pictures_without_a_feature_are_told_apart_by_their_colour():
    generator = np.random.default_rng(0)
    pictures = np.zeros((3000, 4), np.uint64)
    pictures[:, 0] = generator.integers(0, 4, 3000)
    pictures[:, 1:] = generator.integers(200, 256, (3000, 3))
    documents = list(pictures[:, None])
    found = seen_before(*arrays_of(documents), 1)
    assert found.tolist() == one_by_one(documents, 1) and 500 < len(found) < 2900


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 10), st.sampled_from([1, 10**4, 10**7, 10**9]))
def test_hashes_that_nearly_agree_agree_under_a_mask(data, bits: int, count: int):
    chosen = np.array(masks(bits, count))
    one = data.draw(st.integers(0, 2**64 - 1))
    flips = data.draw(st.sets(st.integers(0, 63), max_size=bits))
    other = one ^ sum(1 << bit for bit in flips)
    assert (np.uint64(one ^ other) & chosen == 0).any()
    assert len(set(chosen.tolist())) == len(chosen)


def test_more_hashes_are_compared_under_longer_masks():
    least = [min(np.bitwise_count(np.array(masks(3, count)))) for count in (10**4, 10**6, 10**8)]
    assert least == sorted(least) and least[0] < least[-1]
    assert masks(0, 10**6) == [np.uint64(2**64 - 1)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three tars of pictures 0 to 7, 5 to 12 and 10 to 17: the second and the third repeat others, in JPEG."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(3):
        members = []
        for seed in range(5 * number, 5 * number + 8):
            name = f"{number}-{seed}"
            picture = drawn(seed, file_format="JPEG", quality=85) if number else drawn(seed)
            record = {"captions": captions(seed), "id": name}
            members += [
                (f"{name}.{'jpg' if number else 'png'}", picture),
                (f"{name}.json", json.dumps(record).encode()),
            ]
        tar(folder / f"{number}.tar", members)
    return folder


OPTIONS = {"duplicate_bits": 4, "samples_per_part": 3}
REPEATED = ["1-5", "1-6", "1-7", "2-10", "2-11", "2-12"]


def test_what_another_file_shows_is_left_out_of_training(command: Command, corpus: Path, tmp_path: Path):
    code, stderr = command(corpus, tmp_path / "out", **OPTIONS)
    assert code == 0 and "24 documents (6 of them repeat another file)" in stderr
    dataset = open_dataset(tmp_path / "out")
    left_out = dataset.lengths.left_out().tolist()
    assert [dataset[number]["id"] for number in left_out] == REPEATED
    rejects = rejects_of(tmp_path / "out")
    assert [(reject["id"], reject["file"]) for reject in rejects] == [(i, f"{i[0]}.tar") for i in REPEATED]
    assert dataset.manifest["rejects"] == {"duplicate_picture": 6} and dataset.manifest["left_out"] == 6
    mixed = Mixture([SourceLengths(dataset.fingerprint, 2.0, dataset.lengths)], (), "run")
    (documents,) = mixed.documents(0)
    assert sorted(documents.tolist()) == sorted([*set(range(24)) - set(left_out)] * 2)
    tokens = sum(
        int(dataset.lengths.lengths[slice(*dataset.lengths.offsets[d : d + 2])].sum()) for d in set(documents.tolist())
    )
    assert sum(int(lengths.sum()) for lengths, _ in dataset.lengths.kept_entries()) == tokens


def test_the_same_on_any_number_of_workers_and_after_damage(command: Command, corpus: Path, tmp_path: Path):
    assert command(corpus, tmp_path / "out", **OPTIONS)[0] == 0
    whole = contents(tmp_path / "out")
    for worker in (2, 0, 1):
        assert command(corpus, tmp_path / "three", **OPTIONS, job_index=worker, job_count=3)[0] == 0
    assert contents(tmp_path / "three") == whole
    for damage in ("lengths/kept.npy", "parts/000001.0000/lengths.npz", "parts/000000.0001/shard.00000.mds"):
        path = tmp_path / "out" / damage
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        if path.suffix == ".npz":  # a finished dataset does not need it
            (tmp_path / "out/manifest.json").unlink()
        assert command(corpus, tmp_path / "out", **OPTIONS)[0] == 0
        assert contents(tmp_path / "out") == whole
    shutil.rmtree(tmp_path / "out/parts/000002.0001")
    (tmp_path / "out/manifest.json").unlink()
    assert command(corpus, tmp_path / "out", **OPTIONS)[0] == 0
    assert contents(tmp_path / "out") == whole


def test_nothing_is_there_for_duplicates_where_none_are_looked_for(command: Command, corpus: Path, tmp_path: Path):
    assert command(corpus, tmp_path / "out", samples_per_part=3)[0] == 0
    dataset = open_dataset(tmp_path / "out")
    assert "left_out" not in dataset.manifest and not len(dataset.lengths.left_out())
    assert not (tmp_path / "out/lengths/kept.npy").exists()
    with np.load(tmp_path / "out/parts/000000.0000/lengths.npz") as arrays:
        assert set(arrays) == {"offsets", "lengths", "layout", "kinds"}
    jsonl(corpus / "other/captions.jsonl", [{"text": "no pictures"}])
    assert command(corpus / "other/captions.jsonl", tmp_path / "texts", **OPTIONS)[0] == 0
    assert open_dataset(tmp_path / "texts").manifest["rejects"] == {}
