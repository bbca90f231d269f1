"""Compiled pictures where CPUs of several kinds share torch's cache of compiled code, as the nodes of a cluster may.

torch 2.13 takes code for AVX-512 on a CPU with AVX2, and half of the numbers are wrong (findings/inductor-cache-of-another-processor.sh).
"""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config

from model.hf.generation_uni_x import own_vectors


@pytest.mark.parametrize("capability, bits", [("AVX2", 256), ("AVX512", 512), ("DEFAULT", None), ("SVE256", None)])
def test_a_graph_is_kept_by_the_length_of_the_vectors(capability: str, bits: int | None, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert own_vectors() == ({"cpp.simdlen": bits} if bits else {})
    named = config.save_config_portable(ignore_private_configs=False)  # the part of a graph's name that settings make
    with config.patch(own_vectors()):
        within = config.save_config_portable(ignore_private_configs=False)
    assert (within != named) == bool(bits)


def test_it_is_given_to_the_compiler(monkeypatch):
    from model.hf import generation_uni_x
    from tests.model.tiny_hf import tiny_model

    given = {}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.update(options) or function)
    generation_uni_x.compiled_forward(tiny_model(seed=1))
    assert given == {"fullgraph": True, "dynamic": False, "options": {"cpp.simdlen": 256}}
