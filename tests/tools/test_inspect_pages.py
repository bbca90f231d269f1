"""What the preview of a corpus reads and counts, and its pages in a browser."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from model.shapes import Framing, grids_from
from tests.tools.browser import PHONE, browser  # noqa: F401
from tokenization.readers import open_corpus
from tools.inspection.corpus import look
from tools.inspection.cut_pictures import cut_picture, lost, thumbnail
from tools.inspection.data_page import Shown, document, table, write_page


def test_pairs_are_looked_at_in_all_folders_and_their_number_is_told(tmp_path: Path):
    for number in range(120):
        place = tmp_path / "photos" / f"{number // 20}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (2 * number, 0, 0)).save(place / f"{number:03d}.png")
        (place / f"{number:03d}.txt").write_text(str(number))
    found = look(open_corpus(tmp_path / "photos"), 30, 32)
    read = [int(shown.texts[0]) for shown, _ in found.documents]
    assert sorted(read) == list(range(0, 120, 4)) and ("documents looked at", "30 of 120") in found.figures()
    assert {number // 20 for number in read[:12]} == set(range(6)), "a page shows the beginning of them"
    for shown, pictures in found.documents:
        assert pictures[0].getpixel((9, 9)) == (2 * int(shown.texts[0]), 0, 0)
    every = look(open_corpus(tmp_path / "photos"), 500, 32)
    assert len(every.documents) == 120 and ("documents looked at", "120 of 120") in every.figures()


def test_labels_of_cut_pictures_are_those_of_their_own_sizes():
    """Thumbnails of these have sides of 128 x 43, 128 x 42 and 3 x 128."""
    framing = Framing(grids_from("aspect", 8), 8, False)
    for size in ((640, 213), (640, 212), (37, 1500)):
        small = thumbnail(Image.new("RGB", size))
        assert cut_picture(small, size, framing)[1].endswith(f", {lost(size, framing):.0%} cut off")


def test_pages_fit_a_phone(browser, tmp_path: Path):  # noqa: F811
    """Wide tables scroll by themselves, and the page does not."""
    wide = table([f"column {number}" for number in range(12)], [list(range(12))])
    write_page(tmp_path / "page.html", "a page", [wide, document("a/b.jpg", [Shown("words")])])
    context = browser.new_context(viewport=PHONE, is_mobile=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [PHONE["width"]] * 2
    assert page.evaluate("document.querySelector('table').offsetWidth") > PHONE["width"]
    context.close()
