"""W&B gets what metrics.jsonl gets; read back from what its client writes when it is told to stay offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.metrics import Metrics
from pretrain.records import Records
from pretrain.wandb_log import run_id


def history(folder: Path) -> list[dict]:
    """Every line of every offline run, in order."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        assert run_id(folder) in file.name
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                found.append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
    return found


def test_every_line_reaches_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\n")
    log = Metrics(tmp_path, 0, False, Records(print), wandb="uni-x")
    for step in (1, 2, 3):
        log.write(step, {"train/loss": step / 3, "train/bad": float("nan")})
    log.close()
    told = [{key: line[key] for key in ("step", "train/loss")} for line in history(tmp_path)]
    assert told == [{"step": step, "train/loss": step / 3} for step in (1, 2, 3)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == told


def test_without_a_login_the_remedy_is_named(tmp_path, monkeypatch):
    from pretrain.system.errors import UserError

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="log.wandb uni-x: .* WANDB_MODE=offline"):
        Metrics(tmp_path, 0, False, Records(print), wandb="uni-x")
