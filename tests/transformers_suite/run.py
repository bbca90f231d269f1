#!/usr/bin/env python
"""Run transformers' own common suites, of the version that is installed, on the classes of an export, and count.

The suites are in transformers' source distribution, which is downloaded from PyPI once a version; nothing of it is kept
in this repository. Of 4.57.6 and 5.24.0 it holds test_modeling_common.py and test_configuration_common.py, but not the
generation suite nor the causal-LM tester, which those import: they are stood in for by empty classes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ABSENT = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "exporters/__init__.py": "",
    "utils/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
"""Files that the suites import and the source distribution lacks -> what stands in for them."""


HELPERS = ("parameterized==0.9.0",)
"""What the suites import beside pytest; it is put beside them, not into the environment."""


def fetch(version: str, folder: Path) -> Path:
    """The package `transformers_tests` of one version, under `folder`."""
    package = folder / "transformers_tests"
    if package.is_dir():
        return package
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"transformers-{version}.tar.gz"
    if not archive.is_file():
        download(version, folder)
    pip("install", "--no-deps", "--upgrade", "--target", str(folder), *HELPERS)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    shutil.rmtree(package, ignore_errors=True)
    shutil.move(folder / f"transformers-{version}" / "tests", package)
    shutil.rmtree(folder / f"transformers-{version}")
    for name, text in ABSENT.items():
        path = package / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return package


def download(version: str, folder: Path) -> None:
    """The source distribution into `folder`; pip also tries to build it, which may fail, and leaves the file all the same."""
    pip("download", "--no-deps", "--no-binary", "transformers", f"transformers=={version}", "-d", str(folder))
    if not (folder / f"transformers-{version}.tar.gz").is_file():
        sys.exit(f"error: pip could not download the source of transformers {version}")


def pip(command: str, *arguments: str) -> None:
    """pip of this environment; what it left undone is seen by who called it."""
    subprocess.run([sys.executable, "-m", "pip", command, "-q", *arguments], check=False)


def main() -> int:
    """Download, run, and let pytest print the counts -> its exit code."""
    import transformers

    package = fetch(transformers.__version__, ROOT / "work" / "transformers-suite" / transformers.__version__)
    print(f"transformers {transformers.__version__}: common suites of models and configurations", flush=True)
    paths = [str(ROOT), str(package.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    suite = ROOT / "tests" / "transformers_suite" / "common_suites.py"
    options = [
        "-q",
        "--noconftest",
        "-p",
        "tests.transformers_suite.counts",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",  # marks of these tests are transformers' own, which pyproject.toml's strictness refuses
        "-W",
        "ignore",
        "--tb=line",
        "-rf",
    ]
    command = [sys.executable, "-m", "pytest", *options, str(suite), *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
