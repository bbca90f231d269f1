"""What the README and docs say is run: the demo at a small size, then every command that they show, in its folder.

They are forked from a process that has torch and its kin imported (`tests.command_server`), since half of what such a command
takes is imports, and import the project's own modules anew. Which of them need a Python of their own is in IN_A_PYTHON_OF_THEIR_OWN.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_server import ANEW, FORKED
from tests.commands import CommandServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "tokenization/weights").glob("*/README.md")]
)
SMALL = [
    "run.steps=3",
    "log.every=1",
    "log.samples_every=3",
    "log.heldout_rows=2",
    "checkpoint.every=2",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=3",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.head_dim=16",
    "data.sequence_length=512",
    "log.sample_prompts=[sun]",
    "run.threads=1",
]


def documented(page: Path) -> list[str]:
    """The commands of a page's bash blocks, continued lines joined, comments left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                found.append(line.strip())
    return found


ALL = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in documented(page)]


def test_every_page_was_found():
    assert {"README.md", "docs/data.md", "docs/training.md"} <= {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert len(ALL) >= 8


DRY = ["model.num_hidden_layers=4", "model.shallow=1", "model.deep=1", "data.global_batch_size=16"]
IN_A_PYTHON_OF_THEIR_OWN = ("tools/dry_run.py", "tools/evaluate.py", "tools/measure_conflict.py")
"""Scripts whose imports of libraries have an order that a fork does not show: the first must not find torch imported, the others
import megatron-core too. tests/test_start_up.py starts training, shards, export, generation and the server so."""


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_forked(commands: CommandServer, command: list[str], hook: tuple = ()) -> str:
    done = commands.run(*command, hook=hook)
    assert done.code == 0, f"{shlex.join(command)}\n{done.out[-2000:]}\n{done.err[-3000:]}"
    return done.out


def run_demo(commands: CommandServer, preset: str, folder: Path, *words: str) -> str:
    """The demo's script, and its stages, which it starts one after the other."""
    command = ["tools/demo.py", "--preset", preset, "--folder", str(folder), *words, "--set", *SMALL]
    return run_forked(commands, command, FORKED)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, commands: CommandServer) -> Path:
    """`make demo`'s own script, with few pictures, few steps and a tiny model."""
    folder = tmp_path_factory.mktemp("work")
    said = run_demo(commands, "demo", folder, "--pictures", "60", "--prompts", "4", "--processes", "2")
    assert "$ torchrun --standalone --nproc-per-node 2 pretrain/train.py" in said
    assert f"{folder}/demo/report/report.html is ready" in said
    said = run_demo(commands, "demo-edit", folder, "--edits", "3", "--processes", "1")
    assert f"{folder}/demo-edit/report/report.html is ready" in said
    return folder


def test_the_demo_ends_with_a_report(demo):
    page = (demo / "demo" / "report" / "report.html").read_text(encoding="utf-8")
    figures = json.loads((demo / "demo" / "report" / "figures.json").read_text())
    assert figures["drawn_names"]["prompts"] == 4
    for words in ("Names that were trained on", "Names that were held out", "held-out image loss", "times chance"):
        assert words in page
    assert page.count("data:image/png;base64,") > 20
    assert 'src="http' not in page


def test_the_longer_demo_trains_on_moved_copies_too(demo, commands: CommandServer):
    said = run_demo(commands, "demo-long", demo, "--prompts", "4", "--processes", "1")
    assert f"{demo}/demo-long/report/report.html is ready" in said
    manifests = [demo / "data/shards" / name / "manifest.json" for name in ("train", "moved")]
    pictures = [json.loads(manifest.read_text())["counts"]["pictures"] for manifest in manifests]
    assert pictures[1] == 4 * pictures[0] > 0


def test_the_editing_demo_ends_with_a_report(demo):
    page = (demo / "demo-edit" / "report" / "report.html").read_text(encoding="utf-8")
    figures = json.loads((demo / "demo-edit" / "report" / "figures.json").read_text())
    assert figures["side"] == "heldout" and figures["kinds"]["all"]["edits"] > 3
    assert set(figures["kinds"]) > {"line art", "recolour"}
    for words in ("Inside the changed region", "copied codes", "instruction only", "turn this into line art"):
        assert words in page
    assert (demo / "demo-edit" / "report" / "edits.png").is_file()


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in ALL if c.startswith("python ")])
def test_a_documented_command_runs(demo, commands: CommandServer, page, command):
    words = shlex.split(command, comments=True)
    words = [re.sub(r"\bwork/", f"{demo}/", word) for word in words[1:]]
    extra = SMALL if words[0] == "pretrain/train.py" else []
    if words[0] == "tokenization/train_vq.py":
        extra = ["--steps", "3", "--warmup-steps", "1", "--batch-size", "8"]
    if words[0] == "tools/measure_conflict.py":
        extra = ["--blocks", "4", "--targets", "4", "--sequence-length", "256", "--threads", "1"]
    if words[0] == "tools/serve.py":
        return serve_and_end(commands, [*words, "--port", "0"])
    if words[0] == "tools/evaluate.py" and "--pairs" in words:
        extra = ["--pairs", "3"]
    if words[0] == "tools/dry_run.py":
        extra = DRY
    if words[0] == "tools/bench_serve.py":
        extra = ["--seconds", "1"]
    first = next(place for place in ALL if place[1].split()[:2] == ["python", words[0]])
    if (page, command) == first and words[0] in IN_A_PYTHON_OF_THEIR_OWN:
        run([sys.executable, *words, *extra])
    else:
        run_forked(commands, [*words, *extra], FORKED if words[0] == "tools/evaluate_run.py" else ANEW)


def serve_and_end(commands: CommandServer, command: list[str]) -> None:
    """A server answers until it is told to end."""
    server = commands.start(*command, hook=ANEW)
    server.wait_until(lambda: any(line.startswith("ready: ") for line in server.out.read_text().splitlines()))
    os.kill(server.pid, signal.SIGTERM)
    done = server.wait()
    assert done.code == 0, f"{shlex.join(command)}\n{done.out}\n{done.err}"


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in ALL if not c.startswith("python ")])
def test_other_documented_commands_are_make_targets(page, command):
    words = shlex.split(command, comments=True)
    assert words[0] == "make", f"{page}: {command}: only python and make commands are tested, so use only these"
    run(["make", "--dry-run", *words[1:]])


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
