"""Settings, overrides and folders of a careless user: each is one line that names it, before a rank is started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.commands import CommandServer, Finished, assert_refused

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "slurm/pretrain_3b.sbatch"


def script(name: str, *words: str, root: Path = ROOT, cwd: Path = ROOT, **settings: str) -> Finished:
    """A batch script, started as Slurm does on the first node of a job."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("UNIX_", "SLURM_", "SBATCH_"))}
    clean |= {"UNIX_ROOT": str(root), "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "node1"}
    done = subprocess.run(
        ["bash", str(root / name), *words], env=clean | settings, cwd=cwd, capture_output=True, text=True, timeout=120
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "setting, value, parts",
    [
        ("UNIX_MINDISK", "3", ["UNIX_MINDISK", "UNIX_MIN_DISK"]),
        ("UNIX_CONFG", "my.yaml", ["UNIX_CONFG", "UNIX_CONFIG"]),
        ("UNIX_DEVICE", "GPU", ["UNIX_DEVICE", "'GPU'", "gpu or cpu"]),
        ("UNIX_MIN_DISK", "abc", ["UNIX_MIN_DISK", "'abc'"]),
        ("UNIX_MIN_DISK", "-5", ["UNIX_MIN_DISK", "'-5'"]),
        ("UNIX_MIN_BANDWIDTH", "nan", ["UNIX_MIN_BANDWIDTH", "'nan'"]),
        ("UNIX_MAX_CLOCK", "5 s", ["UNIX_MAX_CLOCK", "'5 s'"]),
        ("UNIX_RESTARTS", "0", ["UNIX_RESTARTS", "'0'"]),
        ("UNIX_RESTARTS", "1e3", ["UNIX_RESTARTS", "'1e3'"]),
        ("UNIX_WAIT", "abc", ["UNIX_WAIT", "'abc'"]),
        ("UNIX_RANKS_PER_NODE", "0", ["UNIX_RANKS_PER_NODE", "'0'"]),
        ("UNIX_RANKS_PER_NODE", " 1", ["UNIX_RANKS_PER_NODE", "' 1'"]),
        ("UNIX_WORK", "/nowhere", ["UNIX_WORK", "/nowhere", "no folder"]),
    ],
)
def test_a_wrong_setting_is_refused_by_name_by_every_script_and_before_the_queue(
    commands: CommandServer, setting: str, value: str, parts: list[str]
):
    """A misspelt one was ignored, and one that the check of the nodes could not read left the check out."""
    assert_refused(script(TRAIN, **{setting: value}), *parts)
    assert_refused(script("slurm/convert_to_hf.sbatch", **{setting: value}), *parts)
    done = commands.run(
        "slurm/submit.py", "--dry-run", TRAIN, hook=("tests.slurm.test_settings", "set_variable", setting, value)
    )
    assert_refused(done, *parts)


def set_variable(name: str, value: str) -> None:
    """In a command, before it begins."""
    os.environ[name] = value


@pytest.mark.parametrize("word", ["--nodes=1", "--time=5", "--config", "-N2"])
def test_options_after_the_script_are_refused(commands: CommandServer, word: str):
    """`--nodes=1` there was tried in three attempts; `--no-data` or `--config` changed the plan and not the run."""
    assert_refused(script(TRAIN, word, "run.steps=3"), word, "before the script")
    assert_refused(commands.run("slurm/submit.py", "--dry-run", TRAIN, "--", word), word, "before the script")


def test_an_array_is_refused_by_what_trains():
    """Its tasks took each other's nodes and requeued each other without end."""
    assert_refused(script(TRAIN, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="1"), "--array", "run.folder")


def copy_with_site(folder: Path, old: str, new: str) -> Path:
    """A repository with another slurm/site.sh."""
    for path in ROOT.iterdir():
        if path.name not in ("slurm", ".git"):
            (folder / path.name).symlink_to(path)
    (folder / "slurm").mkdir()
    for path in (ROOT / "slurm").iterdir():
        if path.is_file() and path.name != "site.sh":
            (folder / "slurm" / path.name).write_bytes(path.read_bytes())
            (folder / "slurm" / path.name).chmod(0o755)
    text = (ROOT / "slurm/site.sh").read_text(encoding="utf-8")
    assert old in text
    (folder / "slurm/site.sh").write_text(text.replace(old, new), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ("  : # module load cuda/12.6", "  nosuchcommand load cuda/12.6", ["site_environment", "127"]),
        (': "${UNIX_RESTARTS:=3}"', "UNIX_RESTART=3", ["UNIX_RESTART ", "UNIX_RESTARTS"]),
        (': "${UNIX_RESTARTS:=3}"', "#", ["UNIX_RESTARTS", "slurm/site.sh"]),
        (': "${UNIX_RESTARTS:=3}"', "if [ ", ["slurm/site.sh", "bash -n"]),
    ],
)
def test_a_wrong_site_is_named(tmp_path: Path, old: str, new: str, parts: list[str]):
    done = script("slurm/convert_to_hf.sbatch", "--help", root=copy_with_site(tmp_path, old, new))
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(lines) == 1 and all(part in lines[0] for part in parts), done.err


def test_what_modules_print_does_not_become_the_run_folder(tmp_path: Path):
    """`RUN` was the first words that a module printed."""
    root = copy_with_site(tmp_path, "  : # module load cuda/12.6", "  echo loading modules")
    done = script("slurm/convert_to_hf.sbatch", "--help", root=root)
    assert done.code == 0 and "loading modules" in done.err and "loading modules" not in done.out, done.err
