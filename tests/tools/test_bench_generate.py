"""The benchmark of generation: that its ways draw the same codes, and that it measures what it names."""

from __future__ import annotations

import json

import pytest
import torch

from model.hf.routing_uni_x import Routing
from tests.model.tiny_hf import START, document, tiny_model
from tools import bench_generate
from tools.benchmarks import generating


def test_it_prints_every_way_and_writes_figures(commands, tmp_path):
    done = commands.run(
        "tools/bench_generate.py", "--codes", 4, "--rounds", 1, "--every", 2, "--json", tmp_path / "bench.json"
    )
    assert done.code == 0, done.err
    assert all(f"| {words} |" in done.out for words in generating.WAYS.values())
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["codes"] == 4 and figures["ways"]["batch"]["times_the_first"] == 1.0
    assert set(figures["rounds"][0]) == set(generating.WAYS)
    refused = commands.run("tools/bench_generate.py", "--rounds", 0)
    assert refused.code == 2 and "--rounds" in refused.err


@torch.no_grad()
def test_both_branches_compute_twice_and_give_the_same(monkeypatch):
    model = tiny_model(seed=41)
    ids = torch.tensor([[*document([3, 4, 2]), START]])
    expected, tokens = model(ids).logits, {"text": 0, "vision": 0}

    def count(kind):
        return lambda module, args: tokens.__setitem__(kind, tokens[kind] + len(args[0]))

    for index, branch in model.model.vision_layers.items():
        branch.mlp.register_forward_pre_hook(count("vision"))
        model.model.layers[int(index)].mlp.register_forward_pre_hook(count("text"))
    model(ids)
    assert tokens["text"] + tokens["vision"] == 2 * ids.numel()  # two separated layers
    monkeypatch.setattr("model.hf.modeling_uni_x.Routing", generating.both_branches(Routing))
    tokens |= {"text": 0, "vision": 0}
    found = model(ids).logits
    assert tokens == {"text": 2 * ids.numel(), "vision": 2 * ids.numel()}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_recomputing_checks_the_codes_that_it_is_given():
    model = generating.build_model("demo")
    codes = generating.draw(model, 2, 6, bench_generate.GUIDANCE)
    assert generating.recompute_seconds(model, codes, every=1) > 0
    with pytest.raises(AssertionError, match="other codes"):
        generating.recompute_seconds(model, (codes + 1) % 1024, every=1)
