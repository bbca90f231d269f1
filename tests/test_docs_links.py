"""Every page and record is reachable from docs/index.md, and no link of a page leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "docs/index.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tokenization").rglob("README.md")])


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link of a page to a file of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return [
        (
            (page.parent / target.partition("#")[0]).resolve() if not target.startswith("#") else page,
            target.partition("#")[2],
        )
        for target in found
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have where it is shown."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    for file, anchor in links(page):
        assert file.exists(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {file.name}#{anchor}"


def test_the_index_has_every_page():
    linked = {file for file, _ in links(INDEX)}
    assert linked >= {page for page in (ROOT / "docs").rglob("*.md") if page != INDEX}
