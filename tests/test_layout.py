"""Where modules stand, what they import, and docs/renamed.md: new names are there, old ones only where they are taken."""

import ast
import re
import subprocess
from pathlib import Path

from pretrain.config_names import FORMER_NAMES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "renamed.md").read_text(encoding="utf-8")
HISTORY = ("CHANGELOG.md", "docs/renamed.md", "docs/benchmarks/", "tests/data/")
KEYS_TAKEN = {"pretrain/config_names.py", "tests/pretrain/test_config_names.py", "tools/benchmarks/long_run.py"}
MODULES_TAKEN = {f"tools/benchmarks/{name}.py" for name in ("reading_peers", "long_run", "start_up", "gpu/step_worker")}
"""Where former names are taken, or asked for in checkouts of any age."""
EVERYDAY = set(
    [
        "Place",
        "Stage",
        "Source",
        "Piece",
        "Job",
        "Engine",
        "Family",
        "Encoder",
        "Metrics",
        "Gate",
        "Findings",
        "Sampler",
        "UniXModel",
        "StepTime",
        "told",
    ]
)
"""Former names that are words, or names of other classes."""


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    part = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0].partition("\nWhat commands")[0]
    return [re.findall(r"`([^`]+)`", line) for line in part.splitlines() if line.startswith("| `")]


def tracked() -> dict[str, str]:
    """Text of every tracked file that is not history."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    kept = [
        name for name in names if name.endswith((".py", ".md", ".yaml", ".toml", ".sh", ".sbatch", "Makefile", ".cfg"))
    ]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in kept if not name.startswith(HISTORY)}


def found(names: list[str], pattern: str) -> dict[str, set[str]]:
    """Name -> tracked files in which it stands where `pattern` says, {} being the names."""
    alternatives = re.compile(
        pattern.format("(" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + ")")
    )
    holders: dict[str, set[str]] = {name: set() for name in names}
    for file, text in tracked().items():
        for name in set(alternatives.findall(text)) if file != "tests/test_layout.py" else ():
            holders[name].add(file)
    return holders


def test_former_keys_are_on_the_page_and_stand_where_they_are_taken_alone():
    listed = dict(rows("Configuration keys"))
    assert listed == {old: f"{old.partition('.')[0]}.{new}" for old, new in FORMER_NAMES.items()}
    names = {old if old.endswith((".hierarchical", ".wordings")) else old.partition(".")[2]: old for old in listed}
    for name, files in found(list(names), r"\b{}\b").items():
        assert files <= KEYS_TAKEN, name


def test_modules_are_under_their_new_names_alone():
    listed = dict(rows("Modules"))
    for new in listed.values():
        place = ROOT / new.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), new
    files = found(
        [old for old in listed if old not in ("tools.generation", "tools.entropy")], r"(?<![\w./]){}(?![\w./-])"
    )
    assert {old: names for old, names in files.items() if names - MODULES_TAKEN} == {}


def test_classes_and_functions_are_under_their_new_names_alone():
    listed = rows("Classes and functions")
    for old, new, module in listed:
        place = ROOT / module.replace(".", "/")
        source = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
        defined = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        assert new in defined and old not in defined, new
    files = found([old for old, _, _ in listed if old not in EVERYDAY], r"\b{}\b")
    assert {old: names for old, names in files.items() if {n for n in names if n.endswith(".py")}} == {}


MAY_IMPORT = {
    "pretrain/system": ("pretrain.system",),
    "model": ("model", "pretrain.system"),
    "tokenization": ("tokenization", "model", "pretrain.system"),
    "pretrain": ("pretrain", "tokenization", "model"),
}
"""CONTRIBUTING.md: which packages a package may import, of ours."""


def test_packages_import_what_stands_below_them_alone():
    for folder, allowed in MAY_IMPORT.items():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
                ours = [
                    name
                    for name in names
                    if name.split(".")[0] in ("model", "pretrain", "tokenization", "tools", "slurm")
                ]
                wrong = [name for name in ours if not any(f"{name}.".startswith(f"{each}.") for each in allowed)]
                assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_library_imports_a_command():
    """Commands stand at the top of tools/ and hold arguments and a call; what they call is in packages by subject."""
    commands = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__"}
    for path in (path for path in (ROOT / "tools").rglob("*.py") if path.parent != ROOT / "tools"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tools":
                parts = [(node.module or "").split("."), *([node.module, name.name] for name in node.names)]
                assert not [part for part in parts if part[0] == "tools" and len(part) > 1 and part[1] in commands], (
                    path
                )
