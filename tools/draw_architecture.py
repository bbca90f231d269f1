"""Write docs/architecture.md's table and picture from the code: which file does what, from a corpus to a Hugging Face
folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import ast
import textwrap
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/architecture.md", ROOT / "docs/images/architecture.svg"
BEGIN, END = "<!-- files: begin -->\n", "<!-- files: end -->\n"


@dataclass(frozen=True)
class PathStep:
    """A stage of the path: its files in the order of the data flow, and its output."""

    name: str
    files: tuple[str, ...]
    gives: str  # to the next stage


STAGES = (
    PathStep(
        "Read",
        ("tokenization/shard_images.py", "tokenization/readers/__init__.py", "tokenization/preprocess.py"),
        "an RGB picture and its captions, as documents; what could not be read, counted",
    ),
    PathStep(
        "Tokenize",
        (
            "tokenization/pipeline.py",
            "tokenization/text_tokenizer.py",
            "tokenization/vq.py",
            "tokenization/encode.py",
            "tokenization/sample.py",
        ),
        "code shards: text ids and a grid of picture codes for each document, in the MDS format",
    ),
    PathStep(
        "Pack",
        (
            "tokenization/shards.py",
            "pretrain/data.py",
            "pretrain/tasks.py",
            "pretrain/rows.py",
            "pretrain/packing.py",
            "pretrain/row_tensors.py",
            "pretrain/loader.py",
        ),
        "rows: ids and labels [S], text before vision, and what brings them into document order",
    ),
    PathStep(
        "Compute",
        (
            "model/routing.py",
            "model/layer_kinds.py",
            "model/layer_specs.py",
            "model/attention.py",
            "model/uni_x.py",
            "model/loss.py",
        ),
        "losses of target tokens and their gradients",
    ),
    PathStep(
        "Train",
        (
            "pretrain/train.py",
            "pretrain/start.py",
            "pretrain/loop.py",
            "pretrain/engines/__init__.py",
            "pretrain/saver.py",
            "pretrain/checkpoint.py",
            "pretrain/sharded_files.py",
        ),
        "checkpoints: weights and optimizer state as boxes that any layout reads",
    ),
    PathStep(
        "Export",
        ("tools/convert_to_hf.py", "model/weight_names.py", "tools/export/model_card.py"),
        "a Hugging Face folder: weights, code, processor, image tokenizer, card",
    ),
    PathStep(
        "Use",
        (
            "model/hf/modeling_uni_x.py",
            "model/hf/processing_uni_x.py",
            "model/hf/generation_uni_x.py",
            "tools/generate.py",
            "tools/serve.py",
            "tools/evaluate.py",
        ),
        "pictures, captions, texts, scores",
    ),
)
BEGINS_WITH = "a folder of pictures and captions"


def what_it_does(file: str) -> str:
    """The first sentence of a module's docstring. Raises UserError where there is none."""
    path = ROOT / file
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except OSError:
        raise UserError(f"{path}: is not there: mend STAGES in tools/draw_architecture.py") from None
    if not docstring:
        raise UserError(f"{path}: has no docstring: say in its first line what it does")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def table() -> str:
    """The stages and their files as Markdown."""
    lines = ["| stage | file | what it does |", "|---|---|---|"]
    for stage in STAGES:
        for number, file in enumerate(stage.files):
            sentence = what_it_does(file).replace("|", "\\|")
            lines.append(f"| {'' if number else stage.name} | [{file}](../{file}) | {sentence} |")
        lines.append(f"| | *gives* | *{stage.gives}* |")
    return "\n".join(lines) + "\n"


WIDTH, LEFT, LINE, GAP = 960, 24, 17, 62  # of the picture, in pixels
COLOURS = ("#dbeafe", "#dbeafe", "#e0e7ff", "#fae8ff", "#fae8ff", "#dcfce7", "#dcfce7")


def picture() -> str:
    """The table as a picture (SVG): a box for each stage, an arrow with its output."""
    parts: list[str] = []
    top = 20

    def text(x: int, y: int, words: str, kind: str, anchor: str = "start") -> None:
        parts.append(f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def arrow(y: int, words: str) -> int:
        parts.append(f'<path d="M 90 {y} v {GAP - 18}" class="arrow" marker-end="url(#head)"/>')
        text(110, y + GAP // 2 - 2, words, "gives")
        return y + GAP - 6

    text(LEFT, top + 6, BEGINS_WITH[0].upper() + BEGINS_WITH[1:], "gives")
    top = arrow(top + 12, "")
    for stage, colour in zip(STAGES, COLOURS, strict=True):
        rows = [(file, textwrap.wrap(what_it_does(file), 92)) for file in stage.files]
        height = 34 + LINE * sum(len(lines) for _, lines in rows)
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{WIDTH - 2 * LEFT}" height="{height}" rx="8" fill="{colour}"/>'
        )
        text(LEFT + 14, top + 20, stage.name, "name")
        y = top + 20 + LINE
        for file, lines in rows:
            text(LEFT + 14, y, file, "file")
            for line in lines:
                text(LEFT + 290, y, line, "said")
                y += LINE
        top = top + height + 4
        top = arrow(top, stage.gives) if stage is not STAGES[-1] else top
    text(LEFT, top + 22, STAGES[-1].gives[0].upper() + STAGES[-1].gives[1:], "gives")
    style = (
        "text{font-family:system-ui,sans-serif;fill:#111827}.name{font-size:15px;font-weight:600}"
        ".file{font-size:12px;font-family:ui-monospace,monospace}.said{font-size:12px}"
        ".gives{font-size:13px;font-style:italic;fill:#374151}.arrow{stroke:#6b7280;stroke-width:2;fill:none}"
    )
    head = (
        '<marker id="head" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#6b7280"/></marker>'
    )
    size = f'width="{WIDTH}" height="{top + 40}" viewBox="0 0 {WIDTH} {top + 40}"'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<title>From a corpus to a Hugging Face folder</title>\n'
        f"<defs>{head}</defs><style>{style}</style>\n{background}\n{body}\n</svg>\n"
    )


def page(old: str) -> str:
    """The page with the current table."""
    before, mark, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise UserError(f"{PAGE}: has no {BEGIN.strip()} and {END.strip()}: put them where the table is to stand")
    return before + mark + table() + end + after


def main(words: list[str] | None = None) -> int:
    """Write both files, or with --check compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/draw_architecture.py --check",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 2 where a file is not up to date"
    )
    arguments = parser.parse_args(words)
    wanted = {PAGE: page(PAGE.read_text(encoding="utf-8")), PICTURE: picture()}
    for path, content in wanted.items():
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        if arguments.check and found != content:
            raise UserError(f"{path}: is not what the code says: run python tools/draw_architecture.py")
        if not arguments.check:
            write_text(path, content)
    return 0


if __name__ == "__main__":
    run_command(main)
