"""Boxes written by any number of processes are read back whole or in other boxes, bit for bit; damage is an error."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pretrain.sharded_files import read_boxes, read_whole, stored_tensors, write_whole
from pretrain.system.errors import UserError
from pretrain.tensor_boxes import TensorBox
from tests.parallel_world import World
from tests.pretrain import checkpoint_jobs


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """Two tensors, written by four ranks."""
    folder = tmp_path_factory.mktemp("sharded") / "weights"
    world.run(checkpoint_jobs.write_example, 4, folder=folder)
    return folder


def test_four_ranks_write_and_one_process_reads_whole_tensors(written: Path):
    expected = checkpoint_jobs.example()
    assert stored_tensors(written) == {name: (tuple(t.shape), t.dtype) for name, t in expected.items()}
    for name, tensor in read_whole(written, expected):
        assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype
    assert len(list(written.glob("*.distcp"))) == 4


def test_other_boxes_are_read(written: Path):
    expected = checkpoint_jobs.example()
    into = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    matrix, vector = into["matrix"], into["vector"]
    boxes = [
        TensorBox("matrix", (8, 6), (0, 0), matrix[:3, :5]),
        TensorBox("matrix", (8, 6), (3, 0), matrix[3:, :5]),
        TensorBox("matrix", (8, 6), (0, 5), matrix[:, 5:]),
        TensorBox("vector", (10,), (0,), vector[:3]),
        TensorBox("vector", (10,), (3,), vector[3:]),
    ]
    read_boxes(written, boxes)
    assert all(torch.equal(into[name], expected[name]) for name in expected)


def test_megatron_core_reads_the_format(written: Path, world: World):
    """The folder is its torch_dist format: dist_checkpointing knows it and finds every tensor."""
    found = world.run(checkpoint_jobs.read_with_megatron, 1, folder=written)[0]
    expected = checkpoint_jobs.example()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_process_writes_whole_tensors_one_at_a_time(tmp_path, world: World):
    expected = checkpoint_jobs.example()
    write_whole(tmp_path / "whole", ((name, lambda tensor=tensor: tensor) for name, tensor in expected.items()))
    for name, tensor in read_whole(tmp_path / "whole", expected):
        assert torch.equal(tensor, expected[name])
    assert world.run(checkpoint_jobs.read_with_megatron, 1, folder=tmp_path / "whole")[0].keys() == expected.keys()


def test_what_does_not_fit_is_an_error(written: Path):
    with pytest.raises(UserError, match="other is absent"):
        read_boxes(written, [TensorBox("other", (2,), (0,), torch.zeros(2))])
    with pytest.raises(UserError, match=r"matrix is \[8, 6\], \[8, 7\] is wanted"):
        read_boxes(written, [TensorBox("matrix", (8, 7), (0, 0), torch.zeros(8, 7))])
    with pytest.raises(UserError, match="holds no other"):
        list(read_whole(written, ["other"]))


def test_holes_and_overlaps_are_not_written(tmp_path, world: World):
    for rows in ((0, 3), (0, 5)):  # of 8, from rank 0; rank 1 writes 4:8; torch 2.11 names no tensor
        with pytest.raises(AssertionError, match="RuntimeError.*(matrix|global plan)"):
            world.run(checkpoint_jobs.write_rows, 2, folder=tmp_path / f"{rows}", rows=rows)


def test_a_folder_that_cannot_be_written_is_one_error_on_every_rank(tmp_path, world: World):
    (tmp_path / "file").write_text("")
    found = world.run(checkpoint_jobs.error_of_writing, 2, folder=tmp_path / "file" / "weights")
    assert all("RuntimeError" in error for error in found)


class Foreign:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_metadata_that_asks_for_code_is_refused(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Foreign(tmp_path / "mark")))
    with pytest.raises(UserError, match="has no place in the metadata"):
        stored_tensors(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle at all"])
def test_unreadable_metadata_is_one_line(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata: cannot be read"):
        stored_tensors(tmp_path)


def test_reading_holds_one_tensor_at_a_time(tmp_path):
    import weakref

    write_whole(tmp_path, ((f"t{n}", lambda n=n: torch.full((64, 64), float(n))) for n in range(5)))
    alive: list = []
    for _, tensor in read_whole(tmp_path, [f"t{n}" for n in range(5)]):
        alive.append(weakref.ref(tensor.untyped_storage()))
        del tensor
        assert sum(ref() is not None for ref in alive) <= 1
