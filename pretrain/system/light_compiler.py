"""Decorators of torch's compiler that import it when it is used, not where a function is defined.

`torch.compiler.disable` and `torch._dynamo.allow_in_graph` import the whole compiler, half a second of CPU time, when a module
that uses them on a function is imported. transformers 4.57 does so in its base class. torch's optimizers import it when one
is made, and at every step.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COMPILER = "torch._dynamo"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Context in which the two decorators leave the compiler unloaded. Where it is loaded already, they stay as they are.

    `disable` is applied at the function's first call, `allow_in_graph` when the compiler is imported.
    """
    import torch

    if COMPILER in sys.modules:
        yield
        return
    real = torch.compiler.disable
    allowed = _NotYetImported()
    torch.compiler.disable = functools.partial(_disable, real)
    torch._dynamo = allowed
    try:
        yield
    finally:
        torch.compiler.disable = real
        if torch.__dict__.get("_dynamo") is allowed:
            del torch._dynamo
        if allowed.functions and COMPILER not in sys.modules:
            sys.meta_path.insert(0, _AfterImport(allowed.functions))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Context for calls of torch's optimizers, outside of anything compiled: they leave the compiler unloaded.

    torch 2.13 imports it to keep it away from them, and to mark places where a graph must end. Without it there is nothing
    to keep away, and no graph. With a GPU it is needed anyway, and stays.
    """
    import torch

    if COMPILER in sys.modules or torch.cuda.is_available():
        yield
        return
    absent = _NotYetImported()
    sys.modules[COMPILER] = torch._dynamo = absent
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is absent:
            del sys.modules[COMPILER]
        if torch.__dict__.get("_dynamo") is absent:
            del torch._dynamo


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Context in which torch.compile leaves functions as they are, for modules that apply it to theirs when they are imported."""
    import torch

    real = torch.compile

    def keep(function: Callable | None = None, **_: Any) -> Callable:
        return function if function is not None else keep

    torch.compile = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def _disable(real: Callable, function: Callable | None = None, recursive: bool = True, **keywords: Any) -> Any:
    """`torch.compiler.disable` of a function, applied at its first call."""
    if function is None:
        return functools.partial(_disable, real, recursive=recursive, **keywords)
    disabled = functools.cache(lambda: real(function, recursive=recursive, **keywords))

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return disabled()(*args, **named)

    return call


class _NotYetImported(types.ModuleType):
    """In the place of torch._dynamo: notes what is allowed in graphs, has nothing to do for optimizers, and imports the
    compiler for anything else."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.functions: list[Callable] = []

    def allow_in_graph(self, function: Any) -> Any:
        self.functions.extend(function if isinstance(function, (list, tuple)) else [function])
        return function

    @staticmethod
    def disable(function: Callable, recursive: bool = True, wrapping: bool = True) -> Callable:
        return function

    @staticmethod
    def graph_break() -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Allows the noted functions in graphs as soon as the compiler has been imported."""

    def __init__(self, functions: list[Callable]) -> None:
        self.functions = functions

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            real = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                real(module)
                module.allow_in_graph(self.functions)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
