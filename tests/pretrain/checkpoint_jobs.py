"""What the processes of `tests.parallel_world` are asked to do with checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.pieces import Piece
from pretrain.sharded_files import write_format, write_pieces


def example() -> dict[str, torch.Tensor]:
    """Two tensors of distinct values, of two dtypes."""
    return {"matrix": torch.arange(48.0).view(8, 6), "vector": torch.arange(10).to(torch.bfloat16)}


def write_boxes(folder: Path) -> None:
    """Quarters of the matrix by rank; of the vector ranks 1 and 3 write a part each."""
    rank, tensors = torch.distributed.get_rank(), example()
    matrix, vector = tensors["matrix"], tensors["vector"]
    row, column = 4 * (rank // 2), 3 * (rank % 2)
    pieces = [Piece("matrix", (8, 6), (row, column), matrix[row : row + 4, column : column + 3])]
    if rank % 2:
        first, last = (0, 7) if rank == 1 else (7, 10)
        pieces.append(Piece("vector", (10,), (first,), vector[first:last]))
    write_pieces(folder, pieces)
    if rank == 0:
        write_format(folder)
    torch.distributed.barrier()


def write_rows(folder: Path, rows: tuple[int, int]) -> None:
    """Rank 1 writes rows 4:8 of the matrix, rank 0 the given ones."""
    first, last = rows if torch.distributed.get_rank() == 0 else (4, 8)
    write_pieces(folder, [Piece("matrix", (8, 6), (first, 0), example()["matrix"][first:last])])


def error_of_writing(folder: Path) -> str:
    """The error that this rank gets."""
    try:
        write_rows(folder, (0, 4))
    except Exception as error:
        return f"{error.__class__.__name__}: {error}"
    return ""


def read_with_megatron(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by megatron-core's own functions."""
    from megatron.core import dist_checkpointing

    assert dist_checkpointing.check_is_distributed_checkpoint(str(folder))
    return dist_checkpointing.load_plain_tensors(str(folder))
