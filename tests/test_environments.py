"""What `make setup` installs is pinned, for each Python that is supported, and nothing else is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MEGATRON = {"3.11": "0.16.1", "3.12": "0.19.2"}


def requirements(name: str, python: str) -> dict[str, str]:
    """Names and versions that a file has for this Python."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        if not words:
            continue
        wanted = Requirement(words)
        assert re.fullmatch(r"==[^*,]+", str(wanted.specifier)), f"{name}: {words} is not pinned"
        if wanted.marker is None or wanted.marker.evaluate({**default_environment(), "python_version": python}):
            key = wanted.name.lower().replace("_", "-")
            assert key not in found, f"{name}: {key} twice on Python {python}"
            found[key] = str(wanted.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", MEGATRON)
def test_each_python_has_its_megatron_core_and_one_version_of_everything(python):
    wanted, constraints = requirements("requirements.txt", python), requirements("constraints.txt", python)
    assert wanted["megatron-core"] == constraints["megatron-core"] == MEGATRON[python]
    different = {name: version for name, version in wanted.items() if constraints.get(name, version) != version}
    assert not different


@pytest.mark.parametrize("of", ["gpu", "gpu-check", "eval", "transformers5", "export-by-hand"])
def test_the_other_environments_are_pinned_too(of):
    assert requirements(f"requirements-{of}.txt", "3.12")
