"""The page in a real browser: chat with a picture, generate with progress, edit side by side, at two widths."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.tools.browser import DESKTOP, PHONE, browser  # noqa: F401
from tests.tools.serving_process import picture_file, serving
from tests.tools.tiny_export import CHATML, write_export

WIDTHS = pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])


@pytest.fixture(scope="module")
def served(commands, tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("page") / "tiny", added=CHATML, max_position_embeddings=1024)
    with serving(commands, folder, tmp_path_factory.mktemp("served"), "--max-pixels", 10_000) as server:
        yield server


@pytest.fixture
def page(served, browser, request):  # noqa: F811
    """The page, opened; nothing may go wrong in it, and it asks nobody but its own server."""
    context = browser.new_context(viewport=request.node.callspec.params["width"])
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("request", lambda asked: asked.url.startswith((served.url, "data:", "blob:")) or wrong.append(asked.url))
    page.goto(served.url)
    expect(page.locator("#model")).to_have_text("tiny, pictures of 8 × 8 pixels")
    yield page
    refused = [text for text in wrong if "status of 4" in text]  # the browser's own line for an answer of 4xx
    assert wrong == refused, wrong
    context.close()


def upload(name: str, **options) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": picture_file(**options)}


def fits(page) -> bool:
    """Whether nothing sticks out of the window's sides."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def unlabelled(page) -> list[str]:
    """Controls and pictures that are seen and have no name for a screen reader."""
    return page.evaluate("""[...document.querySelectorAll("input, textarea, button, img, progress")]
        .filter((one) => one.checkVisibility())
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.alt || one.textContent.trim()))
        .map((one) => one.outerHTML)""")


@WIDTHS
def test_chat_with_a_picture(page, served, width):
    page.get_by_label("Add a picture").set_input_files(upload("a.png"))
    expect(page.get_by_alt_text("The picture to send")).to_be_visible()
    page.get_by_label("Message").fill("What is <b>it</b>?")
    page.get_by_text("Settings").first.click()
    page.get_by_label("Most tokens").fill("20")
    page.get_by_role("button", name="Send").click()
    mine, answer = page.locator(".message.user"), page.locator(".message.assistant")
    expect(mine.locator("p")).to_have_text("What is <b>it</b>?")
    assert mine.get_by_alt_text("Your picture").is_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(answer.locator("p")).not_to_have_text("")
    # the conversation goes on, and the second answer is that of both turns
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("Message").fill("Sure?")
        page.get_by_label("Message").press("Enter")
    assert [message["role"] for message in sent.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    expect(answer).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert fits(page) and not unlabelled(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)


@WIDTHS
def test_generate_with_progress(page, served, width):
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a cat")
    page.locator("#draw").get_by_text("Settings").click()
    page.locator("#draw").get_by_label("Seed").fill("5")
    served.brake.touch()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Progress of the pictures")).to_be_visible()
    expect(page.locator("#draw-results figcaption").first).to_have_text("waiting…")
    # every picture that is shown on the way, and how far the bar was then
    page.evaluate("""window.seen = [];
        new MutationObserver(() => seen.push(document.querySelector("#draw progress").value))
            .observe(document.querySelector("#draw-results img"), {attributeFilter: ["src"]})""")
    served.brake.unlink()
    expect(page.locator("#draw-said")).to_contain_text("seed 5")
    expect(page.get_by_label("Progress of the pictures")).to_be_hidden()
    seen = page.evaluate("seen")
    assert len(seen) >= 2 and seen == sorted(seen)
    expected = served.client.images.generate(prompt="a cat", n=2, extra_body={"seed": 5}).data
    shown = page.locator("#draw-results img").evaluate_all("all => all.map((image) => image.src)")
    assert shown == [f"data:image/png;base64,{picture.b64_json}" for picture in expected]
    assert fits(page) and not unlabelled(page)


@WIDTHS
def test_edit_side_by_side(page, served, width):
    page.get_by_role("tab", name="Edit").click()
    page.get_by_label("Choose a picture").set_input_files(upload("house.png"))
    page.get_by_label("Instruction").fill("make it blue")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.locator("#edit-said")).to_contain_text("Done in")
    source, result = page.get_by_alt_text("Source picture"), page.get_by_alt_text("Result 1 of “make it blue”")
    left, right = source.bounding_box(), result.bounding_box()
    assert abs(left["y"] - right["y"]) < 2 and abs(left["width"] - right["width"]) < 2
    assert left["x"] + left["width"] < right["x"] and left["width"] > min(300, width["width"] / 3)
    assert fits(page) and not unlabelled(page)
    # a result is the source of the next edit
    page.get_by_role("button", name="Edit this").click()
    expect(result).to_have_count(0)
    page.get_by_label("Instruction").fill("and larger")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_alt_text("Result 1 of “and larger”")).to_be_visible()
    expect(page.locator("#edit-name")).to_have_text(re.compile(r"uni-x-\d+-0.png"))


@WIDTHS
def test_errors_and_stopping_are_shown(page, served, width):
    page.get_by_role("tab", name="Edit").click()
    page.get_by_label("Instruction").fill("make it blue")
    page.get_by_role("button", name="Edit", exact=True).click()
    error = page.locator("#edit").get_by_role("alert")
    expect(error).to_have_text("Choose a picture first.")
    page.get_by_label("Choose a picture").set_input_files(upload("large.png", size=(200, 100)))
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(error).to_contain_text("200 x 100 pixels, the limit is 10,000")
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a cat")
    served.brake.touch()
    page.get_by_role("button", name="Generate").click()
    served.wait_until(lambda: served.requests() == 1)
    page.locator("#draw").get_by_role("button", name="Stop").click()
    expect(page.locator("#draw").get_by_role("alert")).to_have_text("Stopped.")
    served.wait_until(lambda: served.requests() == 0)
    served.brake.unlink()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    assert fits(page) and not unlabelled(page)


@pytest.mark.parametrize("width", [DESKTOP])
def test_tabs_are_reached_by_keyboard(page, width):
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Generate").get_attribute("aria-selected") == "true"
    assert page.get_by_label("Description").is_visible() and not page.get_by_label("Message").is_visible()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_label("Message").is_visible()
