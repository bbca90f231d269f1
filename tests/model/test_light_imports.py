"""Libraries imported without what they bring along."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from pretrain.system.light_imports import hidden, lazy_packages


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
