"""The read side: what was written comes back, empty arrays too, and a damaged file is always named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pretrain.rows import parts_of_index
from pretrain.system.errors import UserError
from tokenization.manifest import finish_dataset
from tokenization.parts import FileRecord, mds_writer, write_part
from tokenization.readers.document import KINDS, ROLES, Picture, Reject, Text
from tokenization.sample import COLUMNS, PICTURE, CodedDocument, entry_lengths, from_mds, layout_of, parts_of, to_mds
from tokenization.shard_files import ShardFiles
from tokenization.shards import check_vq, open_dataset
from tokenization.vq import load_vq

JOB = {
    "tokenizer": {"name": "bytes", "sha256": "0" * 64, "vocab_size": 257},
    "vq": {"name": "tiny", "fingerprint": "f" * 64, "codebook_size": 32, "downsample": 2, "image_size": 16},
    "filters": {},
}


def document(number: int, texts: list[list[int]], grids: list[tuple[int, int]]) -> CodedDocument:
    codes = [np.arange(h * w, dtype=np.uint16).reshape(h, w) + number for h, w in grids]
    kind = "caption_pair" if grids else "text"
    ids = [np.array(text, dtype=np.uint32) for text in texts]
    layout = np.array([PICTURE] * len(grids) + [0] * len(texts), dtype=np.uint8)
    return CodedDocument(f"d{number}", "corpus", kind, tuple("x" * len(text) for text in texts), ids, codes, layout)


DOCUMENTS = [
    document(0, [[1, 2, 3]], [(2, 3)]),
    document(1, [[4], [5, 6]], [(8, 8)]),
    document(2, [[7, 8]], []),
    document(3, [[]], [(4, 4)]),
    document(4, [[], [9]], [(1, 2), (2, 1)]),
    document(5, [[]], []),
]


def write(folder: Path, documents: list[CodedDocument], per_part: int = 2) -> Path:
    folder.mkdir()
    (folder / "parts").mkdir()
    records = [
        write_part(folder, 0, start // per_part, "corpus", "f", documents[start : start + per_part], [])
        for start in range(0, len(documents), per_part)
    ]
    finish_dataset(folder, JOB, [FileRecord(0, "corpus.tar", "f", len(documents), records)])
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "dataset", DOCUMENTS)


def same(found: dict[str, Any], expected: CodedDocument) -> bool:
    arrays = {
        "text_ids": (np.concatenate([np.zeros(0, np.uint32), *expected.text_ids]), np.uint32),
        "text_lengths": ([len(ids) for ids in expected.text_ids], np.uint32),
        "codes": (np.concatenate([np.zeros(0, np.uint16), *(codes.ravel() for codes in expected.codes)]), np.uint16),
        "grids": ([side for codes in expected.codes for side in codes.shape], np.uint16),
        "layout": (expected.layout, np.uint8),
    }
    return all(
        found[name].dtype == dtype and np.array_equal(found[name], values) for name, (values, dtype) in arrays.items()
    ) and (found["id"], found["source"], found["kind"], tuple(found["texts"])) == (
        expected.id,
        expected.source,
        expected.kind,
        expected.texts,
    )


def test_documents_come_back_by_number(dataset: Path):
    opened = open_dataset(dataset)
    assert len(opened) == len(DOCUMENTS)
    assert all(same(opened[number], expected) for number, expected in enumerate(DOCUMENTS))
    assert all(same(found, expected) for found, expected in zip(opened, DOCUMENTS, strict=True))
    assert same(opened[-1], DOCUMENTS[-1])
    for number in (6, -7):
        with pytest.raises(IndexError):
            opened[number]


def test_lengths_say_what_is_in_the_shards(dataset: Path):
    opened = open_dataset(str(dataset))
    lengths = opened.lengths
    assert {name: getattr(lengths, name).dtype.name for name in ("offsets", "lengths", "layout", "kinds")} == {
        "offsets": "int64",
        "lengths": "int32",
        "layout": "uint8",
        "kinds": "uint8",
    }
    assert len(lengths) == 6 and lengths.shard_starts.tolist() == [0, 2, 4, 6]
    for number, expected in enumerate(DOCUMENTS):
        first, end = lengths.offsets[number : number + 2]
        assert lengths.lengths[first:end].tolist() == entry_lengths(expected)
        assert lengths.layout[first:end].tolist() == expected.layout.tolist()
        assert opened.manifest["kinds"][lengths.kinds[number]] == expected.kind
    assert opened.manifest["counts"] == {
        "documents": 6,
        "pictures": 5,
        "texts": 8,
        "text_tokens": 9,
        "image_tokens": 6 + 64 + 16 + 4,
    }


def test_a_dataset_goes_through_pickle_and_loader_workers(dataset: Path):
    opened = open_dataset(dataset)
    assert same(opened[3], DOCUMENTS[3])
    assert same(pickle.loads(pickle.dumps(opened))[4], DOCUMENTS[4])
    loader = DataLoader(opened, batch_size=None, num_workers=2)
    assert [found["id"] for found in loader] == [expected.id for expected in DOCUMENTS]


def test_streaming_reads_the_same_index(dataset: Path):
    from streaming.base import StreamingDataset

    streamed = StreamingDataset(local=str(dataset), shuffle=False, batch_size=1)
    assert all(same(from_mds(streamed[number]), expected) for number, expected in enumerate(DOCUMENTS))


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=3),
    grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=3),
)
def test_columns_keep_every_document(texts, grids):
    expected = document(0, texts, grids)
    columns = to_mds(expected)
    assert all(value.size for value in columns.values() if isinstance(value, np.ndarray))  # MDS refuses empty arrays
    assert same(from_mds(columns), expected)


PARTS = st.lists(
    st.builds(Text, st.lists(st.just("x"), min_size=1, max_size=3).map(tuple), st.sampled_from(ROLES))
    | st.builds(Picture, st.none(), st.sampled_from(ROLES)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(parts=PARTS, kind=st.sampled_from(KINDS))
def test_parts_come_back_in_order_with_their_roles(parts, kind):
    texts = [text for part in parts if isinstance(part, Text) for text in part.wordings]
    ids = [np.arange(number % 3, dtype=np.uint32) + number for number in range(len(texts))]
    grids = [(1 + n % 2, 2) for n in range(sum(isinstance(part, Picture) for part in parts))]
    codes = [np.arange(h * w, dtype=np.uint16).reshape(h, w) + n for n, (h, w) in enumerate(grids)]
    written = CodedDocument("d", "corpus", kind, tuple(texts), ids, codes, layout_of(parts))
    found = list(parts_of(from_mds(to_mds(written))))
    assert [part.role for part in found] == [part.role for part in parts]
    pictures, number = iter(codes), 0
    for part, original in zip(found, parts, strict=True):
        if isinstance(original, Picture):
            grid = next(pictures)
            assert part.grid == grid.shape and np.array_equal(part.codes, grid.ravel())
        else:
            assert [text for text, _ in part.wordings] == list(range(number, number + len(original.wordings)))
            assert all(np.array_equal(found_ids, ids[text]) for text, found_ids in part.wordings)
            number += len(original.wordings)


def test_the_fingerprint_is_that_of_the_data(tmp_path: Path, dataset: Path):
    again = write(tmp_path / "again", DOCUMENTS)
    assert open_dataset(again).fingerprint == open_dataset(dataset).fingerprint
    other_code = [document(0, [[1, 2, 3]], [(3, 2)]), *DOCUMENTS[1:]]
    other_order = [*DOCUMENTS[2:], *DOCUMENTS[:2]]
    for number, documents in enumerate((other_code, other_order, DOCUMENTS[:-1])):
        other = write(tmp_path / f"other{number}", documents)
        assert open_dataset(other).fingerprint != open_dataset(dataset).fingerprint


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, 10, -1, 300])
def test_a_flipped_byte_in_a_shard_is_an_error_that_names_it(dataset: Path, position: int):
    flip(dataset / "parts/000000.0001/shard.00000.mds", position)
    opened = open_dataset(dataset)
    assert same(opened[0], DOCUMENTS[0])
    for read in (lambda: opened[2], lambda: opened[3], opened.verify, lambda: list(opened)):
        with pytest.raises(UserError, match=r"parts/000000.0001/shard\.00000\.mds: its content changed") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["index.json", "lengths/offsets.npy", "lengths/layout.npy"])
def test_a_flipped_byte_in_an_index_is_an_error_at_opening(dataset: Path, name: str):
    flip(dataset / name, -1)
    with pytest.raises(UserError, match=f"{name}: its content changed"):
        open_dataset(dataset)


def test_columns_that_would_run_code_are_not_read(dataset: Path):
    index, manifest = (json.loads((dataset / name).read_text()) for name in ("index.json", "manifest.json"))
    index["shards"][1]["column_encodings"][0] = "pkl"
    content = json.dumps(index).encode()
    manifest["index"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (dataset / "index.json").write_bytes(content)
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="index.json: cannot be trusted .*pkl"):
        open_dataset(dataset)[0]


def test_a_shard_that_is_gone_or_cut_is_an_error_at_opening(dataset: Path):
    shard = dataset / "parts/000000.0002/shard.00000.mds"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"parts/000000.0002/shard\.00000\.mds: [\d,]+ bytes instead of"):
        open_dataset(dataset)
    shard.unlink()
    with pytest.raises(UserError, match=r"parts/000000.0002/shard\.00000\.mds: missing"):
        open_dataset(dataset)


def test_manifests_that_cannot_be_used(dataset: Path, tmp_path: Path):
    path = dataset / "manifest.json"
    sound = json.loads(path.read_text())
    cases = {
        "damaged": "{",
        "its fingerprint does not fit": json.dumps(sound | {"shards": sound["shards"][1:]}),
        "KeyError": json.dumps({key: value for key, value in sound.items() if key != "lengths"}),
        "format version 9": json.dumps(sound | {"format_version": 9}),
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            open_dataset(dataset)
    path.unlink()
    with pytest.raises(UserError, match="not a dataset made by"):
        open_dataset(dataset)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")
    (dataset / "job.json").write_text("{}")
    with pytest.raises(UserError, match="not finished"):
        open_dataset(dataset)


def test_only_the_vq_model_that_made_the_codes_is_accepted(vq_folder: Path, other_vq_folder: Path, tmp_path: Path):
    made, other = load_vq(vq_folder), load_vq(other_vq_folder)
    manifest = {"vq": {"name": "somewhere else", "fingerprint": made.fingerprint}}
    check_vq(manifest, made)
    moved = shutil.copytree(vq_folder, tmp_path / "moved")
    check_vq(manifest, load_vq(moved))
    expected = f"'somewhere else'.*{made.fingerprint[:12]}.*'tiny-1' has fingerprint {other.fingerprint[:12]}"
    with pytest.raises(UserError, match=expected):
        check_vq(manifest, other)


def test_rejects_are_counted_by_reason(tmp_path: Path):
    folder = tmp_path / "dataset"
    (folder / "parts").mkdir(parents=True)
    rejects = [Reject(str(number), "corpus", "f", reason, "why") for number, reason in enumerate("bab")]
    record = write_part(folder, 0, 0, "corpus", "f", DOCUMENTS, rejects)
    done = finish_dataset(folder, JOB, [FileRecord(0, "corpus.tar", "f", 9, [record])])
    assert done["rejects"] == {"a": 1, "b": 2}
    assert [json.loads(line)["id"] for line in (folder / "rejects.jsonl").read_text().splitlines()] == ["0", "1", "2"]


def test_ids_and_codes_alone_are_those_of_the_whole_document(dataset: Path):
    found = open_dataset(dataset)
    for number in range(len(found)):
        ids, codes = found.tokens(number)
        parts = parts_of_index(found.lengths, number, ids, codes)
        for quick, whole in zip(parts, parts_of(found[number]), strict=True):
            assert (quick.role, quick.codes is None) == (whole.role, whole.codes is None)
            assert quick.codes is None or np.array_equal(quick.codes, whole.codes)
            for (one, ids_of_one), (other, ids_of_other) in zip(quick.wordings, whole.wordings, strict=True):
                assert one == other and np.array_equal(ids_of_one, ids_of_other)
    with pytest.raises(IndexError):
        found.tokens(len(found))
    assert np.array_equal(pickle.loads(pickle.dumps(found)).tokens(1)[1], found.tokens(1)[1])


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.integers(0, 400), max_size=4),
    sides=st.lists(st.integers(1, 40), max_size=3),
    names=st.text(max_size=300),
)
def test_arrays_of_any_length_are_read_as_streaming_wrote_them(tmp_path_factory, texts, sides, names):
    """Lengths of 255 and 256, and 65,536, are where the format's own spelling of a length grows."""
    from pretrain.system.light_imports import mds_reader

    folder = tmp_path_factory.mktemp("mds")
    written = document(7, [list(range(length)) for length in texts], [(side, 41 - side) for side in sides])
    columns = to_mds(dataclasses.replace(written, id=names))
    with mds_writer()(columns=COLUMNS, out=str(folder), hashes=["sha256"]) as writer:
        for _ in range(2):
            writer.write(columns)
    (shard,) = json.loads((folder / "index.json").read_text())["shards"]
    expected = mds_reader().from_json(str(folder), "", dict(shard))[1]
    found = ShardFiles(folder, [shard]).read(0, 1)
    assert all(
        np.array_equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in found
    )


def test_a_cut_shard_and_other_columns_are_named(dataset: Path):
    shards = json.loads((dataset / "index.json").read_text())["shards"]
    files = ShardFiles(dataset, shards)
    path = dataset / files.names[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"{path}: document 1 cannot be read"):
        files.read(0, 1)
    for kept in (6, 0):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(UserError, match=f"{path}: document 0 cannot be read .it ends in its header"):
            ShardFiles(dataset, shards).read(0, 0)
    shards[0]["column_encodings"] = ["str"] * len(shards[0]["column_names"])
    with pytest.raises(UserError, match="are not those of code shards"):
        ShardFiles(dataset, shards)


def test_few_shards_are_open_at_a_time(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenization.shard_files.OPEN_SHARDS", 1)
    found = open_dataset(dataset)
    codes = [found.tokens(number)[1].tolist() for number in (0, 2, 4, 1, 3, 5)]
    assert codes == [found.tokens(number)[1].tolist() for number in (0, 2, 4, 1, 3, 5)] and len(found._files._open) == 1
