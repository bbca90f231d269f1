"""Cheap parts computed again: the same losses and gradients to the last bit, and less kept, for every kind of layer."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch

from model.recompute import compute_cheap_parts_again
from pretrain.parallel import ParallelLayout
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.parallel_world import World
from tests.pretrain import parallel_jobs

KINDS = ("separated", "mot", "moe_hard", "shared", "moe_hard", "separated")
LAYOUTS = {
    "one process, qwen2.5": (1, {}, QWEN25),
    "one process, qwen3": (1, {}, QWEN3),
    "tp2 sp, qwen3": (2, {"tensor": 2, "sequence": True}, QWEN3),  # norms on heads are among what is computed again
    "dp2 pp2 distributed, qwen2.5": (4, {"pipeline": 2, "distributed_optimizer": True}, QWEN25),
}
DROPOUT = dataclasses.replace(parallel_jobs.OPTIM, dropout=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_computed_again_is_the_same_to_the_last_bit(world: World, layout: str):
    ranks, switches, flavour = LAYOUTS[layout]
    changes = {"layer_kinds": KINDS, "tie_word_embeddings": False, **flavour}
    kept, again = (
        world.run(
            parallel_jobs.train,
            ranks,
            changes=changes,
            optim=DROPOUT,
            parallel=ParallelLayout(**switches, **more),
            steps=1,
        )
        for more in ({}, {"recompute_cheap": True})
    )
    for (steps, measured, weights), (steps_again, measured_again, weights_again) in zip(kept, again, strict=True):
        assert (steps, measured) == (steps_again, measured_again)
        assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


class Half(torch.nn.Module):
    """A norm, a product, an activation function and a product, of which the first product is used in two parts."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.activation = torch.nn.LayerNorm(width), torch.nn.SiLU()
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        normed = self.norm(x)
        up = torch.cat([self.up(normed[:3]), self.up(normed[3:])])
        return x + self.down(self.activation(up))


def test_modules_of_these_kinds_are_forgotten_and_made_again():
    torch.manual_seed(0)
    plain = Half(8)
    lean = Half(8)
    lean.load_state_dict(plain.state_dict())
    calls = []

    def recipe(module):
        return lambda x: (calls.append(torch.is_grad_enabled()), module.forward(x))[1]

    compute_cheap_parts_again(lean, {torch.nn.LayerNorm: recipe, torch.nn.SiLU: recipe})
    x = torch.randn(7, 8, requires_grad=True)
    expected = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    out = lean(x)
    assert not calls
    found = torch.autograd.grad(out.square().sum(), [x, *lean.parameters()])
    assert calls == [False] * 3, "the norm for each of the two products that kept a part of it, the activation once"
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_outputs_are_gone_when_the_layer_is_done():
    lean, outputs = Half(8), []
    for module in (lean.norm, lean.activation):
        module.register_forward_hook(lambda _module, _given, output: outputs.append(weakref.ref(output)))
    compute_cheap_parts_again(
        lean, {kind: lambda module: module.forward for kind in (torch.nn.LayerNorm, torch.nn.SiLU)}
    )
    out = lean(torch.randn(7, 8, requires_grad=True))
    assert out.requires_grad and [output() for output in outputs] == [None, None]


def test_an_error_inside_leaves_nothing_behind():
    lean = Half(8)
    compute_cheap_parts_again(lean, {torch.nn.LayerNorm: lambda norm: norm.forward})
    with pytest.raises(RuntimeError):
        lean(torch.randn(7, 9))
    with torch.autograd.graph.disable_saved_tensors_hooks("an error where hooks are there already"):
        pass
    lean(torch.randn(7, 8, requires_grad=True)).sum().backward()
