"""Libraries imported without what they bring along."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.system.light_imports import deferred, hidden, lazy_packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> str:
    """A package "heavyN" whose `__init__` brings a module that is wanted, one that is not, and a name."""
    name = f"heavy{abs(hash(tmp_path))}"
    folder = tmp_path / name / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("from . import dear\nLOADED = True\n")
    (folder.parent / "dear.py").write_text("")
    (folder / "__init__.py").write_text("from . import dear\nfrom .cheap import VALUE\n")
    (folder / "dear.py").write_text("")
    (folder / "cheap.py").write_text("from . import part\nVALUE = part.VALUE\n")
    (folder / "part.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


def test_a_module_comes_without_its_package(package: str):
    lazy_packages(package, f"{package}.inner")
    assert importlib.import_module(f"{package}.inner.cheap").VALUE == 7
    assert f"{package}.dear" not in sys.modules and f"{package}.inner.dear" not in sys.modules
    assert (
        importlib.import_module(package).LOADED and f"{package}.dear" in sys.modules
    )  # asked for: as if nothing had been put off
    assert importlib.import_module(f"{package}.inner").VALUE == 7
    with pytest.raises(AttributeError, match="nothing"):
        getattr(importlib.import_module(package), "nothing")  # noqa: B009


def test_what_is_there_or_nowhere_is_left_alone(package: str):
    whole = importlib.import_module(package)
    lazy_packages(package, "no_such_package", "no_such_package.inner")
    assert importlib.import_module(package) is whole and "no_such_package" not in sys.modules


def test_hidden_modules_are_back_afterwards(package: str):
    with hidden(package, "json"):
        with pytest.raises(ImportError):
            importlib.import_module(package)
        assert importlib.util.find_spec(package) is None
        import json  # it was there before

        assert json.loads("7") == 7
    assert importlib.import_module(package).LOADED


@pytest.fixture
def costly(tmp_path: Path, monkeypatch) -> str:
    """A module with a class, a function and a number, and one that imports them."""
    name = f"costly{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text("class Kind:\n    size = 3\ndef twice(n):\n    return 2 * n\nNUMBER = 7\n")
    (tmp_path / f"{name}_user.py").write_text(
        f"from {name} import Kind, twice\ndef is_it(value: Kind | None):\n    return isinstance(value, Kind)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


def test_a_deferred_module_is_loaded_when_it_is_used(costly: str):
    with deferred({costly: ("Kind", "twice")}):
        user = importlib.import_module(f"{costly}_user")
    assert not user.is_it(3) and not issubclass(int, user.Kind) and costly not in sys.modules  # none can exist yet
    assert user.twice(2) == 4 and costly in sys.modules
    real = importlib.import_module(costly)
    assert (
        issubclass(real.Kind, user.Kind)
        and user.Kind.size == 3
        and user.is_it(real.Kind())
        and isinstance(user.Kind(), real.Kind)
        and not user.is_it(3)
    )


def test_what_a_deferred_module_was_not_given_loads_it(costly: str):
    with deferred({costly: ("Kind",)}):
        user = importlib.import_module(f"{costly}_user")  # asks for twice, too
        real = sys.modules[costly]
        assert real.NUMBER == 7
    assert sys.modules[costly] is real and user.twice is real.twice
    with deferred({costly: ("Kind",)}):
        assert sys.modules[costly] is real


def run(*lines: str) -> str:
    """What a fresh Python prints."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_transformers_models_are_listed_as_transformers_lists_them():
    said = run(
        "from pretrain.system.light_imports import import_transformers",
        "import_transformers()",
        "import transformers.models, sys",
        "from transformers.utils.import_utils import create_import_structure_from_path, spread_import_structure",
        "listed = spread_import_structure(create_import_structure_from_path(transformers.models.__file__))",
        "ours = transformers.models.__dict__['_class_to_module']",
        "assert ours == {name: module for of in listed.values() for module, names in of.items() for name in names}",
        "print(len(ours) > 1000, 'torch._dynamo' in sys.modules, 'sympy' in sys.modules)",
        "import transformers.trainer, transformers.integrations.tensor_parallel as parallel",
        "print(parallel.verify_tp_plan.__module__, 'colwise' in parallel.ALL_PARALLEL_STYLES)",
    )
    assert said.splitlines() == ["True False False", "transformers.integrations.tensor_parallel True"]


def test_the_compiler_is_there_when_it_is_used():
    said = run(
        "from pretrain.system.light_imports import import_transformers",
        "import_transformers()",
        "import torch, sys",
        "from transformers import PreTrainedModel",
        "from transformers.masking_utils import TransformGetItemToIndex",
        "print('torch._dynamo' in sys.modules, torch.compiler.disable.__module__)",
        "with TransformGetItemToIndex():",
        "    pass",
        "from torch._dynamo.trace_rules import is_callable_allowed",
        "print(is_callable_allowed(PreTrainedModel.can_record_outputs.fget))",
        "double = torch.compile(lambda x: 2 * x, backend='eager', fullgraph=True)",
        "print(double(torch.ones(2)).tolist())",
        "from transformers.integrations.flex_attention import WrappedFlexAttention",
        "print(WrappedFlexAttention(False)() is not None)",
    )
    assert said.splitlines() == ["False torch.compiler", "True", "[2.0, 2.0]", "True"]


def test_an_optimizer_steps_without_the_compiler_as_with_it():
    said = run(
        "import sys, torch",
        "from pretrain.system.light_compiler import uncompiled",
        "def made(weight): return torch.optim.AdamW([weight], lr=0.1, fused=True)",
        "def step(weight, optimizer):",
        "    (weight**3).sum().backward(); optimizer.step(); optimizer.zero_grad()",
        "one = torch.arange(1.0, 5.0, requires_grad=True)",
        "two = one.detach().clone().requires_grad_()",
        "with uncompiled():",
        "    ours = made(one)",
        "    step(one, ours)",
        "print('torch._dynamo' in sys.modules, '_dynamo' in vars(torch))",
        "with uncompiled():",  # what else is asked of the compiler imports it
        "    import torch._dynamo as seen",
        "    shown = seen.OptimizedModule",
        "print(shown is torch._dynamo.OptimizedModule, sys.modules['torch._dynamo'] is torch._dynamo is not seen)",
        "theirs = made(two)",
        "step(two, theirs)",
        "print(torch.equal(one, two))",
        "step(one, ours), step(two, theirs)",  # the one that was made without goes on with the compiler there
        "with uncompiled(): step(one, ours)",
        "step(two, theirs)",
        "print(torch.equal(one, two), torch.compile(lambda x: 2 * x, backend='eager', fullgraph=True)(torch.ones(1)).item())",
    )
    assert said.splitlines() == ["False False", "True True", "True", "True 2.0"]


def test_names_of_torch_checkpoints_are_those_that_its_package_gives():
    said = run(
        "import sys",
        "from pretrain.system.light_imports import FROM_MODULES, import_torch_checkpoint",
        "import_torch_checkpoint()",
        "import torch.distributed.checkpoint as package",
        "names = FROM_MODULES['torch.distributed.checkpoint']",
        "light = {name: getattr(package, name) for name in names}",
        "print('torch.distributed.fsdp' in sys.modules)",
        "package.load_state_dict",  # runs `__init__`
        "print('torch.distributed.fsdp' in sys.modules, all(vars(package)[name] is light[name] for name in names))",
    )
    assert said.splitlines() == ["False", "True True"]


def test_megatron_core_knows_sharded_tensors_that_come_after_it():
    said = run(
        "import os, sys, tempfile, torch",
        "from pretrain import runtime",
        "runtime.install()",
        "print('torch.distributed.tensor' in sys.modules, 'torch.distributed.fsdp' in sys.modules)",
        "from megatron.core.distributed.fsdp.mcore_fsdp_adapter import HAVE_MEGATRON_FSDP",
        "assert HAVE_MEGATRON_FSDP",  # nothing of it was missing
        "from megatron.core.distributed.finalize_model_grads import _unshard_if_dtensor",
        "plain = torch.ones(2)",
        "print(_unshard_if_dtensor(plain) is plain, 'torch.distributed.tensor' in sys.modules)",
        "store = torch.distributed.FileStore(os.path.join(tempfile.mkdtemp(), 'store'), 1)",
        "torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)",
        "from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh",
        "from torch.distributed.fsdp import fully_shard",
        "sharded = distribute_tensor(plain, init_device_mesh('cpu', (1,)), [Replicate()])",
        "whole = _unshard_if_dtensor(sharded)",
        "print(type(sharded) is DTensor, type(whole) is torch.Tensor, torch.equal(whole, plain))",
        "torch.distributed.destroy_process_group()",
    )
    assert said.splitlines() == ["False False", "True False", "True True True"]
