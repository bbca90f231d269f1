"""An installed wheel has everything that the packages read at run time, and console commands that work without the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.console import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "pretrain", "slurm", "tokenization", "tools")
# Commands of this repository's own demo, study and benchmarks, which need the clone
OF_THE_CLONE = {
    "demo",
    "draw_architecture",
    "demo_report",
    "edit_report",
    "demo_corpus",
    "demo_edits",
    "run_study",
    "study_measure",
    "study_speed",
    "bench_generate",
    "bench_serve",
    "bench_step",
    "run_vlmevalkit",
    "fetch_texts",
    "dry_run",
    "gpu_check",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, as a clone has them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Installed into a folder of its own, beside the environment that has its dependencies."""
    target = wheel.parent / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def tracked() -> list[str]:
    """Files that git tracks and that are there."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [name for name in found if name and (ROOT / name).is_file()]


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {name for name in tracked() if name.split("/")[0] in PACKAGES}
    assert expected and expected <= inside


@pytest.mark.parametrize("name", COMMANDS)
def test_a_console_command_answers(installed: Path, tmp_path: Path, name: str):
    done = subprocess.run(
        [installed / "bin" / name, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}"), done.stderr


def test_a_console_command_refuses_in_one_line(installed: Path, tmp_path: Path):
    done = subprocess.run(
        [installed / "bin" / "uni-x-train", "--config", "missing.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "missing.yaml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_command_of_users_has_a_console_command():
    scripts = {
        path.stem: path for folder in ("pretrain", "tokenization", "tools") for path in (ROOT / folder).glob("*.py")
    }
    commands = {stem for stem, path in scripts.items() if "\n    run_command(main)" in path.read_text(encoding="utf-8")}
    assert commands - OF_THE_CLONE == {module.split(".")[-1] for module in COMMANDS.values()}
