"""The page of a model of several shapes: the shape is the model's choice, or one of the list, and a picture keeps its own."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.tools.browser import DESKTOP, PHONE, browser  # noqa: F401
from tests.tools.serving_process import serving
from tests.tools.tiny_export import CHATML, SHAPES, write_export

expect.set_options(timeout=60_000)


@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_shape_is_chosen_and_drawn(commands, browser, tmp_path, width):  # noqa: F811
    folder = write_export(tmp_path / "tiny", CHATML, SHAPES, max_position_embeddings=1024)
    with serving(commands, folder, tmp_path) as served:
        context = browser.new_context(viewport=width)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(served.url)
        expect(page.locator("#model")).to_have_text("tiny, pictures of 8 × 8 pixels and 4 other shapes")
        page.get_by_role("tab", name="Generate").click()
        page.get_by_label("Description").fill("a cat")
        shape = page.locator("#draw").get_by_label("Shape")
        assert shape.locator("option").all_text_contents() == [
            "the model chooses",
            "8 × 8",
            "10 × 6",
            "6 × 10",
            "16 × 4",
            "4 × 16",
        ]
        shape.select_option("16 × 4")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#draw-said")).to_contain_text("Done in")
        sizes = page.locator("#draw-results img").evaluate_all(
            "all => all.map((one) => [one.naturalWidth, one.naturalHeight])"
        )
        assert sizes == [[16, 4], [16, 4]]
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        context.close()
