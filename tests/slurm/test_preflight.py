"""The check of the nodes: which one is named, and what killed runs left behind."""

from __future__ import annotations

import mmap
import os
from argparse import Namespace
from pathlib import Path

from slurm import preflight, shared_memory
from slurm.shared_memory import remove_leftovers
from tests.tokenization.store import serving, unavailable
from tokenization import remote

NODES = ["node1", "node2", "node3"]
LIMITS = Namespace(device="gpu", ranks_per_node=8, min_disk=20.0, min_bandwidth=10.0, max_clock=5.0)


def records(**changes: dict) -> dict[str, dict]:
    good = {"gpus": 8, "disk_gib": 500.0, "code": "c0de", "data": "da7a", "software": "Python 3.11.7, torch 2.13.0"}
    return {name: {"node": name, **good, **changes.get(name, {})} for name in NODES}


def links(**changes: dict) -> dict[str, dict]:
    good = {"clock_offset": 0.01, "links": {"a": 40.0, "b": 41.0}}
    return {name: {"node": name, **good, **changes.get(name, {})} for name in NODES}


def test_good_nodes_pass():
    assert preflight.judge_nodes(records(), NODES, LIMITS) == {}
    assert preflight.judge_links(links(), NODES, LIMITS) == {}


def test_the_bad_node_is_named_and_why():
    cases = [
        ({"gpus": 7}, "7 GPUs"),
        ({"disk_gib": 3.0}, "3.0 GiB free"),
        ({"code": "beef"}, "other code"),
        ({"data": "x/manifest.json cannot be read (Stale file handle)"}, "Stale file handle"),
        ({"software": "Python 3.11.7, torch 2.12.0"}, "torch 2.12.0"),
    ]
    for change, words in cases:
        for name in NODES:
            bad = preflight.judge_nodes(records(**{name: change}), NODES, LIMITS)
            assert list(bad) == [name] and words in bad[name]


def test_a_silent_node_is_named():
    found = records()
    del found["node2"]
    assert preflight.judge_nodes(found, NODES, LIMITS) == {"node2": "gave no answer"}
    found = links()
    del found["node3"]
    assert list(preflight.judge_links(found, NODES, LIMITS)) == ["node3"]


def test_nodes_without_gpus_are_good_where_none_are_asked_for():
    found = records(node1={"gpus": 0}, node2={"gpus": 0}, node3={"gpus": 0})
    assert list(preflight.judge_nodes(found, NODES, LIMITS)) == NODES
    assert preflight.judge_nodes(found, NODES, Namespace(**{**vars(LIMITS), "device": "cpu"})) == {}


def test_clocks_and_links():
    assert "+9.0 s" in preflight.judge_links(links(node2={"clock_offset": 9.01}), NODES, LIMITS)["node2"]
    assert "-9.0 s" in preflight.judge_links(links(node1={"clock_offset": -8.99}), NODES, LIMITS)["node1"]
    slow = links(node1={"links": {"node3": 40.0, "node2": 2.0}}, node2={"links": {"node1": 2.0, "node3": 2.5}})
    assert list(preflight.judge_links(slow, NODES, LIMITS)) == ["node2"]  # node1's other link is good
    assert preflight.judge_links(slow, NODES, Namespace(**{**vars(LIMITS), "min_bandwidth": 0.0})) == {}


def test_neighbours_exchange_once_each_and_never_two_at_a_time():
    for count in range(1, 12):
        pairs = preflight.rounds(count)
        for coordinator in pairs:
            busy = [node for pair in coordinator for node in pair]
            assert len(busy) == len(set(busy))
        expected = {(node, node + 1) for node in range(count - 1)} | ({(count - 1, 0)} if count > 2 else set())
        assert sorted(pair for coordinator in pairs for pair in coordinator) == sorted(expected)


def test_a_node_looks_at_itself(commands, tiny_data, tmp_path):
    from tests.pretrain.tiny_run import write_config

    (tmp_path / "run").mkdir()
    config = write_config(tiny_data, tmp_path / "run")
    done = commands.run("slurm/preflight.py", "node", tmp_path / "check", "run.seed=4", "--config", config)
    assert done.code == 0, done.err
    (name,) = preflight.read(tmp_path / "check", "node")
    judge = ("judge", tmp_path / "check", "--nodes", f"{name},node9", "--ranks-per-node", 2, "--device", "cpu")
    done = commands.run("slurm/preflight.py", *judge, "--min-disk", 0)
    assert done.out == "node9\n" and "node node9 is left out: it gave no answer" in done.err
    (tiny_data.train / "manifest.json").rename(tiny_data.train / "away.json")
    try:
        commands.run("slurm/preflight.py", "node", tmp_path / "check", "--config", config)
    finally:
        (tiny_data.train / "away.json").rename(tiny_data.train / "manifest.json")
    assert "manifest.json cannot be read" in preflight.read(tmp_path / "check", "node")[name]["data"]


def test_leftovers_go_and_what_is_used_or_another_name_stays(tmp_path):
    names = ("deepspeed_allreduce_buffer_0_127.0.0.1_2950_1", "000003_locals", "torch_123_456_0", "nccl-ab12cd")
    for name in (*names, "000004_barrier", "000005_locals", "somebody-elses"):
        (tmp_path / name).write_bytes(bytes(4096))
    with open(tmp_path / "000004_barrier", "r+b") as opened, open(tmp_path / "000005_locals", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
        assert remove_leftovers(tmp_path) == []  # young
        for path in tmp_path.iterdir():
            os.utime(path, (1, 1))
        file.close()
        assert remove_leftovers(tmp_path) == sorted(names)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["000004_barrier", "000005_locals", "somebody-elses"]
        mapped.close()
        opened.close()
    assert remove_leftovers(tmp_path) == ["000004_barrier", "000005_locals"]


def test_what_another_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    """Two jobs on a node look at the same folder, and each gives back its own segments at any moment."""
    paths = [tmp_path / f"{number:06d}_shard_states" for number in range(200)]
    listed, looked = Path.iterdir, shared_memory.in_use

    def listed_then_gone(folder: Path) -> list[Path]:
        found = sorted(listed(folder))
        paths[0].unlink(missing_ok=True)
        return found

    def looked_then_gone(folder: Path) -> set[str]:
        found = looked(folder)
        paths[1].unlink()
        return found

    for path in paths:
        path.write_bytes(b"1")
        os.utime(path, (1, 1))
    monkeypatch.setattr(shared_memory, "in_use", looked_then_gone)
    monkeypatch.setattr(Path, "iterdir", lambda path: listed_then_gone(path) if path == tmp_path else listed(path))
    assert remove_leftovers(tmp_path) == [path.name for path in paths[2:]]


def test_data_at_a_url_is_compared_too(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    (tmp_path / "manifest.json").write_text("{}")
    with serving(tmp_path) as store:
        assert preflight.fingerprint([f"{store.url}/manifest.json"]) == preflight.fingerprint(
            [tmp_path / "manifest.json"]
        )
        assert preflight.fingerprint([f"{store.url}/other.json"]).startswith(f"{store.url}/other.json: is not there")
        store.fault = unavailable
        assert preflight.fingerprint([f"{store.url}/manifest.json"]) == f"{store.url}/manifest.json does not answer"
