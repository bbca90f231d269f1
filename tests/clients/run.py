"""Try the server with real clients, each in an environment of its own, and print the table of docs/serving.md.

    .venv/bin/python -m tests.clients.run --folder /tmp/clients

It downloads about 1.3 GB the first time. Exit codes: 0 every client does all that it has, and the table of
docs/serving.md says so; 1 otherwise. --write puts the table there.
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
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "serving.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"
COLUMNS = ("text", "history", "stream", "picture in", "draw", "edit", "responses", "completions")


@dataclass(frozen=True)
class Client:
    """One row: a script, run by the Python of an environment, or by node with words of its own."""

    title: str
    package: str  # whose version is told
    script: str
    environment: str = ""  # a file of requirements/; empty: npm, or what the machine has
    words: tuple[str, ...] = ()


CLIENTS = (
    Client("openai (Python)", "openai", "openai_client.py", "openai"),
    Client("openai (Python)", "openai", "openai_client.py", "openai1"),
    Client("openai (npm)", "openai", "openai.mjs"),
    Client("litellm", "litellm", "litellm_client.py", "litellm"),
    Client("langchain-openai", "langchain-openai", "langchain_client.py", "langchain"),
    Client("llm", "llm", "llm_client.py", "llm"),
    Client("pydantic-ai", "pydantic-ai-slim", "pydantic_ai_client.py", "pydantic-ai"),
    Client("instructor", "instructor", "instructor_client.py", "instructor"),
    Client("AI SDK, @ai-sdk/openai", "@ai-sdk/openai", "ai_sdk.mjs", words=("openai",)),
    Client("AI SDK, @ai-sdk/openai-compatible", "@ai-sdk/openai-compatible", "ai_sdk.mjs", words=("compatible",)),
    Client("openai-agents", "openai-agents", "agents_client.py", "agents"),
    Client("smolagents", "smolagents", "smolagents_client.py", "smolagents"),
    Client("lm-eval, local-chat-completions and local-completions", "lm-eval", "lm_eval_client.py", "lm-eval"),
    Client("curl --http1.0", "curl", "curl_client.py"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of the environments, to be used again (default: a temporary one)")
    parser.add_argument("--only", metavar="WORD", default="", help="clients whose title or environment has this word")
    parser.add_argument("--write", action="store_true", help="put the table into docs/serving.md")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="clients-"))).resolve()
    chosen = [client for client in CLIENTS if args.only in f"{client.title} {client.environment}"]
    with Server(folder / "server") as settings:
        rows = [row_of(client, folder, settings) for client in chosen]
    if args.folder is None:
        shutil.rmtree(folder)
    table = "\n".join(["| client | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS), *rows])
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    told = page.split(BEGIN)[1].split(END)[0].strip()
    if args.write:
        PAGE.write_text(page.replace(told, table), encoding="utf-8")
    failed, differs = " no " in table, not args.only and not args.write and table != told
    if differs:
        print("docs/serving.md has another table: look at the difference, and write this one with --write")
    return int(failed or differs)


class Server:
    """The server with a tiny model, which has learned nothing: what it says has no sense, but the form is right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def export(self) -> Path:
        """Write the model's folder."""
        from pretrain.system.torchvision_compat import ensure_torchvision

        ensure_torchvision()
        from tests.tools.tiny_export import CHATML, write_export

        shutil.rmtree(self.folder, ignore_errors=True)
        # saving a model imports DeepSpeed where it is installed, which warns of each machine without a GPU unless told
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return write_export(self.folder / "tiny", added=CHATML, max_position_embeddings=1024)

    def __enter__(self) -> dict[str, str]:
        export = self.export()
        from tests.tools.serving_process import picture_file

        (self.folder / "picture.png").write_bytes(picture_file())
        command = [
            sys.executable,
            str(ROOT / "tools/serve.py"),
            "--model",
            str(export),
            "--port",
            "0",
            "--device",
            "cpu",
        ]
        self.process = subprocess.Popen([*command, "--api-key", "secret"], stdout=subprocess.PIPE, text=True)
        url = next(line for line in self.process.stdout if line.startswith("ready: ")).removeprefix("ready: ").strip()
        return {
            "SERVER_URL": f"{url}/v1",
            "SERVER_KEY": "secret",
            "SERVER_MODEL": "tiny",
            "PICTURE": str(self.folder / "picture.png"),
            "TOKENIZER": str(export),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks its makers for prices
        }

    def __exit__(self, *problem: object) -> None:
        self.process.terminate()
        self.process.wait(60)


def row_of(client: Client, folder: Path, settings: dict[str, str]) -> str:
    """A client's line of the table; what went wrong goes to the terminal."""
    command, version = prepared(client, folder)
    done = subprocess.run(
        command, env={**os.environ, **settings}, cwd=HERE, capture_output=True, text=True, timeout=900, check=False
    )
    lines = done.stdout.strip().splitlines()
    found = json.loads(lines[-1]) if done.returncode == 0 and lines else dict.fromkeys(COLUMNS, "no")
    wrong = {name: text for name, text in found.items() if text.startswith("no")}
    if wrong:
        print(f"{client.title} {version}: {wrong}\n{done.stderr[-3000:]}", file=sys.stderr)
    signs = {"yes": "yes", "absent": "–"}
    cells = [signs.get(found.get(name, "absent"), "no") for name in COLUMNS]
    return f"| {client.title} {version} | " + " | ".join(cells) + " |"


def prepared(client: Client, folder: Path) -> tuple[list[str], str]:
    """The command of a client, whose environment is made if it is not there yet, and its version."""
    if client.script.endswith(".mjs"):
        return ["node", f"npm/{client.script}", *client.words], npm_version(client.package)
    if not client.environment:
        said = subprocess.run([client.package, "--version"], capture_output=True, text=True, check=True).stdout
        return [sys.executable, f"python/{client.script}"], re.search(r"\d[\w.]*", said)[0]
    requirements = HERE / "requirements" / f"{client.environment}.txt"
    place = folder / client.environment
    stamp = place / "installed"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        install = [str(place / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run(install, check=True)
        stamp.write_text(requirements.read_text())
    version = re.search(rf"^{client.package}==(.*)$", requirements.read_text(), re.MULTILINE)[1]
    return [str(place / "bin/python"), f"python/{client.script}"], version


def npm_version(package: str) -> str:
    if not (HERE / "npm/node_modules").exists():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE / "npm", check=True)
    return json.loads((HERE / "npm/package.json").read_text())["dependencies"][package]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
