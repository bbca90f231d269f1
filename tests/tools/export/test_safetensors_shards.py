"""Files written tensor by tensor are those that safetensors reads, and little more than a tensor is ever in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tools.export.safetensors_shards import write_shards

ROOT = Path(__file__).resolve().parents[3]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7), st.sampled_from(DTYPES)), min_size=1, max_size=8),
    st.integers(1, 200),
)
def test_what_is_written_is_read(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{n}": torch.randn(a, b).to(dtype) for n, (a, b, dtype) in enumerate(sizes)}
    described = [(name, tensor.to("meta")) for name, tensor in tensors.items()]
    names = write_shards(folder, described, tensors.items(), limit)
    found = {name: tensor for file in names for name, tensor in load_file(folder / file).items()}
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    if len(names) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert all(name in load_file(folder / file) for name, file in index["weight_map"].items())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    for file in names:
        sizes_in_file = [t.numel() * t.element_size() for t in load_file(folder / file).values()]
        assert sum(sizes_in_file) <= limit or len(sizes_in_file) == 1


def test_transformers_reads_several_files(tmp_path):
    from model.hf.modeling_uni_x import UniXForCausalLM
    from tests.model.tiny_hf import tiny_model

    model = tiny_model(seed=3)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    names = write_shards(tmp_path, [(n, t.to("meta")) for n, t in weights.items()], weights.items(), 30_000)
    assert len(names) > 2
    again = UniXForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_were_not_announced_are_an_error(tmp_path):
    described = [("a", torch.empty(2, device="meta")), ("b", torch.empty(2, device="meta"))]
    for stream in ([("a", torch.zeros(2))], [("b", torch.zeros(2))], [("a", torch.zeros(3))]):
        with pytest.raises(ValueError, match="announced"):
            write_shards(tmp_path, described, stream)


PEAK = """
import resource, sys, torch
from pathlib import Path
from pretrain.sharded_files import read_whole, stored_tensors
from tools.export.safetensors_shards import write_shards
source, output = Path(sys.argv[1]), Path(sys.argv[2])
stored = stored_tensors(source)
described = [(name, torch.empty(shape, dtype=dtype, device="meta")) for name, (shape, dtype) in stored.items()]
torch.ones(2**20).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards(output, described, read_whole(source, stored), limit=64 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("parts", [1, 2])
def test_memory_stays_below_a_third_more_than_a_file(tmp_path, world, parts):
    """24 tensors of 16 MiB, 384 MiB in all, into files of 64 MiB; written whole, or in two halves by two ranks."""
    from tests.pretrain import checkpoint_jobs

    world.run(checkpoint_jobs.write_large, parts, folder=tmp_path / "source", tensors=24)
    (tmp_path / "output").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "source"), str(tmp_path / "output")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "output").glob("*.safetensors"))) == 6
    assert int(done.stdout) * 1024 <= 1.3 * 64 * 2**20


CONVERSION = """
import resource, sys, torch
from pathlib import Path
from model.config import ModelConfig, layer_kinds
from model.weight_shapes import stage_shapes
from pretrain.sharded_files import write_whole
from tools.export.from_checkpoint import write_weights
config = ModelConfig(1024, 4096, 4, 8, 2, 128, 8192, 8000, 192, 1, 2, 3, layer_kinds(4, 1, 1))
shapes = stage_shapes(config, 0, 4, embedding=True, head=True)
made = lambda shape: lambda: torch.ones(shape)
if sys.argv[1] == "make":
    write_whole(Path(sys.argv[2]), ((name, made(shape)) for name, shape in shapes.items()))
    sys.exit()
import model.weight_names, pretrain.sharded_files, tools.export.safetensors_shards
torch.ones(2**20).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_weights(Path(sys.argv[2]), Path(sys.argv[3]), config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_whole_conversion_holds_a_few_tensors_at_a_time(tmp_path):
    """A model of 380 MiB whose largest weight, of 32 MiB, is taken apart into two: names and layouts change on the way."""
    output = tmp_path / "output"
    output.mkdir()
    for step in ("make", "convert"):  # in processes of their own: the peak of one is not the other's
        done = subprocess.run(
            [sys.executable, "-c", CONVERSION, step, str(tmp_path / "source"), str(output)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (output / "model.safetensors").stat().st_size > 375 * 2**20
    assert int(done.stdout) * 1024 <= 3 * 32 * 2**20
