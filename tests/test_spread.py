"""What shares costly fixtures is one group, whose tests one worker gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import conftest, spread
from tests.model.processor_of_export import modules_apart
from tests.tools.tiny_export import write_export

TESTS = """
import os, pytest
@pytest.fixture
def cluster():
    pass
@pytest.mark.parametrize("number", range(6))
def test_it(CLUSTER number):
    with open("workers", "a") as file:
        file.write(f"{os.environ['PYTEST_XDIST_WORKER']} {__name__}\\n")
"""


def test_a_worker_has_a_folder_of_its_own_for_the_code_of_exports():
    """transformers imports an export's code from a copy, named by the last part of its folder: "export" in many tests. With one
    folder for all, a worker could import what another is just copying."""
    from transformers import dynamic_module_utils

    folder = dynamic_module_utils.HF_MODULES_CACHE
    assert Path(folder).is_dir() and folder == os.environ["HF_MODULES_CACHE"] == conftest.MODULES


def test_exports_open_after_a_test_with_a_cache_of_its_own(tmp_path: Path):
    """What is left imported of its cache would be where transformers looks for the files of the next export of that name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    export = write_export(tmp_path / "export")
    with modules_apart(str(tmp_path / "outer")):
        with modules_apart(str(tmp_path / "inner")):
            AutoConfig.from_pretrained(export, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
        assert sys.modules[type(model).__module__].__file__.startswith(str(tmp_path / "outer"))


def test_groups_are_seen_in_the_text_of_modules():
    assert spread.group_of("tests/slurm/test_job.py") == "slurm"
    assert spread.group_of("tests/pretrain/test_parallel.py") == "tests/pretrain/test_parallel.py"
    assert spread.group_of("tests/pretrain/test_schedule.py") == "tests/pretrain/test_schedule.py"


def test_a_group_of_modules_has_one_worker(tmp_path: Path):
    for name in ("one", "two", "three"):
        (tmp_path / f"test_{name}.py").write_text(TESTS.replace("CLUSTER", "" if name == "three" else "cluster,"))
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(spread.ROOT)!r})\nfrom pathlib import Path\nfrom tests import spread\n"
        "spread.ROOT = Path(__file__).parent\npytest_xdist_make_scheduler = spread.scheduler\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("18 passed"), done.stdout + done.stderr
    lines = [line.split() for line in (tmp_path / "workers").read_text().splitlines()]
    found = {module: {worker for worker, name in lines if name == module} for _, module in lines}
    assert len(found["test_one"] | found["test_two"]) == 1 == len(found["test_three"])
    assert found["test_one"] != found["test_three"]


def test_a_module_that_starts_processes_is_seen_in_its_text():
    assert spread.starts_processes("tests/test_install.py")
    assert not spread.starts_processes("tests/pretrain/test_schedule.py")


def test_the_longest_groups_are_there():
    groups = {
        spread.group_of(path.relative_to(spread.ROOT).as_posix()) for path in spread.ROOT.glob("tests/**/test_*.py")
    }
    assert set(spread.LONGEST) <= groups


def test_workers_import_from_places_of_their_own_and_pass_over_what_fails(tmp_path: Path, monkeypatch):
    fails = {"d": "import no_such_module\n", "e": "import pytest; pytest.skip('', allow_module_level=True)\n"}
    for name in ("a", "b", "c", "d", "e"):
        text = "open('order', 'a').write(__name__[-1])\n" + fails.get(name, "")
        (tmp_path / f"test_in_turn_{name}.py").write_text(text)
    monkeypatch.setattr(spread, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    spread.import_in_turn(["."], 1, 2)
    assert (tmp_path / "order").read_text() == "cdeab"
