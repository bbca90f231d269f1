"""Runs that their processes cannot share are refused before anything is loaded, with what does not divide."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.process_ranks import check_world
from pretrain.system.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "pretrain/configs/demo.yaml"


def checked(processes: int, *overrides: str) -> int:
    common = ("data.global_batch_size=8", "log.heldout_rows=8", "model.num_hidden_layers=4")
    return check_world(load_config(CONFIG, [*common, *overrides]), processes)


def test_data_parallelism_takes_what_is_left():
    assert checked(1) == 1 and checked(8) == 8
    assert checked(8, "parallel.tensor=2") == 4
    assert checked(8, "parallel.tensor=2", "parallel.pipeline=2") == 2
    assert checked(3, "data.global_batch_size=9", "data.heldout=''", "log.heldout_rows=8") == 3


@pytest.mark.parametrize(
    "processes, overrides, parts",
    [
        (3, ["parallel.tensor=2"], ["3 processes", "multiple of 2", "torchrun"]),
        (1, ["parallel.pipeline=2"], ["1 processes", "parallel.pipeline 2"]),
        (3, [], ["data.global_batch_size 8", "3 data-parallel ranks"]),
        (4, ["log.heldout_rows=6"], ["log.heldout_rows 6", "4 data-parallel ranks"]),
        (4, ["parallel.pipeline=2", "parallel.layout=Et|t|t|tL", "data.global_batch_size=6"], ["6", "microbatches"]),
        (2, ["parallel.tensor=2", "parallel.sequence=true", "data.row_multiple=3"], ["data.row_multiple 3"]),
        (2, ["parallel.pipeline=2", "parallel.layout=Et|ttL"], ["has 3 layers", "the model has 4"]),
        (
            2,
            ["run.engine=zero3", "parallel.pipeline=2"],
            ["no pipeline stages", "parallel.pipeline 2", "parallel.tensor"],
        ),
        (2, ["run.engine=zero3", "parallel.distributed_optimizer=true"], ["zero.stage", "leave it out"]),
        (4, ["run.engine=zero3", "zero.hpz_partition_size=3"], ["zero.hpz_partition_size 3", "4 data-parallel ranks"]),
        (4, ["run.engine=zero3", "zero.hpz_partition_size=2", "zero.stage=2"], ["zero.stage 2", "zero.stage=3"]),
        (3, ["run.engine=zero3"], ["data.global_batch_size 8", "3 data-parallel ranks"]),
    ],
)
def test_what_does_not_divide_is_named(processes, overrides, parts):
    with pytest.raises(UserError) as caught:
        checked(processes, *overrides)
    assert all(part in str(caught.value) for part in parts), caught.value
