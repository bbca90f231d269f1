"""The page in a real browser: chat with a picture, generate with progress, edit side by side, at two widths."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.tools.browser import DESKTOP, PHONE, browser  # noqa: F401
from tests.tools.serving_process import picture_file, serving
from tests.tools.tiny_export import CHATML, write_export

expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong
AXE = Path(__file__).resolve().parents[1] / "clients/npm/node_modules/axe-core/axe.min.js"
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
    expect(page.locator("body.ready")).to_be_attached()
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
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.alt || one.textContent.trim()
            || one.querySelector('img')?.alt))
        .map((one) => one.outerHTML)""")


@WIDTHS
def test_chat_with_a_picture(page, served, width):
    page.get_by_label("Add a picture").set_input_files(upload("a.png"))
    expect(page.get_by_alt_text("The picture to send")).to_be_visible()
    page.get_by_label("Message").fill("What is <b>it</b>?")
    page.get_by_text("Settings").first.click()
    page.get_by_label("Most tokens").fill("20")
    page.get_by_role("button", name="Send").press("Enter")
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
    assert page.evaluate("document.activeElement.id") == "chat-text"  # and so after the button that was pressed
    expect(answer).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert fits(page) and not unlabelled(page)
    texts = page.locator(".message p").all_text_contents()
    page.reload()  # a conversation survives it
    expect(page.locator(".message")).to_have_count(4)
    assert page.locator(".message p").all_text_contents() == texts
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("Message").fill("Still?")
        page.get_by_label("Message").press("Enter")
    assert len(sent.value.post_data_json["messages"]) == 5
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#chat-empty")).to_be_visible()


@WIDTHS
def test_generate_with_progress(page, served, width):
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a cat")
    page.locator("#draw").get_by_text("Settings").click()
    page.locator("#draw").get_by_label("Seed").fill("5")
    served.brake.touch()
    page.get_by_label("Description").press("Enter")
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
    # a picture can be enlarged, and is in the gallery with its prompt, seed and settings, after a reload too
    page.locator("#draw-results .zoom").first.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Picture 1 of “a cat”")
    page.keyboard.press("Escape")
    page.reload()
    page.get_by_role("tab", name="Gallery").click()
    items = page.locator("#gallery-results figure")
    expect(items).to_have_count(2)
    expect(items.first).to_contain_text("seed 5, guidance 4, temperature 0.99, top k 4096, top p 0.96")
    for name, seed in [("Same again", 5), ("with the next seed", 6)]:
        page.get_by_role("tab", name="Gallery").click()
        with page.expect_request("**/v1/images/generations") as sent:
            items.last.get_by_role("button", name=name).click()
        body = sent.value.post_data_json
        assert body["prompt"] == "a cat" and body["seed"] == seed and body["n"] == 2 and body["top_k"] == 4096
        expect(page.locator("#draw-said")).to_contain_text(f"seed {seed}")
    page.get_by_role("tab", name="Gallery").click()
    expect(items).to_have_count(6)
    items.first.get_by_role("button", name="Delete").click()
    expect(items).to_have_count(5)
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
    page.get_by_label("Choose a picture").set_input_files({**upload("a.png"), "name": "letter.txt", "buffer": b"x"})
    expect(error).to_have_text("“letter.txt” is no picture that this browser can read.")
    # what the server would refuse is made smaller, or a PNG, before it is sent
    page.get_by_label("Choose a picture").set_input_files(upload("large.png", size=(200, 100)))
    expect(error).to_be_hidden()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.locator("#edit-said")).to_contain_text("Done in")
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a cat")
    served.brake.touch()
    page.get_by_role("button", name="Generate").click()
    served.wait_until(lambda: served.requests() == 1)
    page.locator("#draw").get_by_role("button", name="Stop").click()
    expect(page.locator("#draw .note")).to_have_text("Stopped.")  # which is no error
    expect(page.locator("#draw").get_by_role("alert")).to_be_hidden()
    served.wait_until(lambda: served.requests() == 0)
    served.brake.unlink()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    assert fits(page) and not unlabelled(page)


@pytest.mark.parametrize("width", [DESKTOP])
def test_tabs_are_reached_by_keyboard(page, width):
    tabs = {name: page.get_by_role("tab", name=name) for name in ("Chat", "Generate", "Edit", "Gallery")}
    tabs["Chat"].focus()
    for key, name in [
        ("ArrowRight", "Generate"),
        ("End", "Gallery"),
        ("ArrowRight", "Chat"),
        ("ArrowLeft", "Gallery"),
        ("Home", "Chat"),
    ]:
        page.keyboard.press(key)
        assert tabs[name].get_attribute("aria-selected") == "true"
        assert page.evaluate("document.activeElement.textContent") == name
    assert page.get_by_label("Message").is_visible() and not page.get_by_label("Description").is_visible()


@pytest.mark.parametrize("width", [PHONE])
def test_a_wrong_setting_in_closed_settings_is_told(page, width):
    for tab, field, wrong in [("chat", "temperature", "11"), ("draw", "guidance", "-1"), ("edit", "top_p", "7")]:
        page.locator(f"#tab-{tab}").click()
        form = page.locator(f"#{tab}-form")
        form.locator("textarea.main-text").fill("x")
        form.locator("summary").click()
        form.locator(f"[name={field}]").fill(wrong)
        form.locator("summary").click()
        expect(form.locator(f"[name={field}]")).to_be_hidden()
        form.locator("textarea.main-text").press("Enter")
        expect(form.get_by_role("alert")).to_contain_text("Value must be")
        assert page.evaluate("document.activeElement.name") == field
        expect(form.locator(f"[name={field}]")).to_be_visible()


@pytest.mark.parametrize("width", [DESKTOP])
def test_pictures_are_pasted_and_dropped_and_other_kinds_are_converted(page, width):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, format="BMP")
    hand = """([selector, kind, bytes, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "a.bmp", {type}));
        const options = {bubbles: true, cancelable: true};
        const event = kind === "paste" ? new ClipboardEvent(kind, {...options, clipboardData: transfer})
            : new DragEvent(kind, {...options, dataTransfer: transfer});
        document.querySelector(selector).dispatchEvent(event);
    }"""
    page.evaluate(hand, ["#chat-text", "paste", list(file.getvalue()), "image/bmp"])
    expect(page.get_by_alt_text("The picture to send")).to_have_attribute("src", re.compile("^data:image/png"))
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Send").click()
    assert sent.value.post_data_json["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("tab", name="Edit").click()
    page.evaluate(hand, ["#edit-form", "drop", list(picture_file()), "image/png"])
    expect(page.get_by_alt_text("Source picture")).to_be_visible()


@pytest.mark.parametrize("width", [PHONE])
def test_a_chat_past_the_context_goes_on(page, width):
    page.locator("#chat summary").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Most tokens").fill("5")
    for _ in range(3):
        page.get_by_label("Message").fill("x" * 400)  # the model has room for 1,024
        page.get_by_label("Message").press("Enter")
        expect(page.locator(".waiting")).to_have_count(0)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#chat .note")).to_contain_text("The first 2 messages no longer fit")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("Message").fill("And?")
        page.get_by_label("Message").press("Enter")
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles[:2] == ["system", "user"] and len(roles) in (4, 6)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


@WIDTHS
def test_axe_finds_nothing(page, width):
    """axe-core's rules for all of WCAG 2 A and AA and its best practices, in every tab, light and dark."""
    if not AXE.exists():
        reason = "axe-core is not installed: make setup-clients"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    page.get_by_label("Message").fill("Hello")
    page.get_by_label("Message").press("Enter")
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a cat")
    page.get_by_label("Description").press("Enter")
    expect(page.locator("#draw-said")).to_contain_text("Done in")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.evaluate(AXE.read_text(encoding="utf-8"))  # not as a <script>: the page lets none in
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for tab in ("chat", "draw", "edit", "gallery"):
            page.locator(f"#tab-{tab}").click()
            found = page.evaluate("axe.run()")
            wrong = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
            assert not wrong and found["passes"], (scheme, tab, json.dumps(wrong, indent=1))


def test_a_page_of_a_model_of_texts_goes_on_with_texts(commands, browser, tmp_path):  # noqa: F811
    folder = write_export(tmp_path / "texts", max_position_embeddings=256, skills=[])
    with serving(commands, folder, tmp_path / "served") as server:
        page = browser.new_context(viewport=PHONE).new_page()
        page.goto(server.url)
        expect(page.locator("body.ready")).to_be_attached()
        assert page.locator("[role=tab]:visible").all_text_contents() == ["Write", "Gallery"]
        expect(page.locator("#skills")).to_contain_text("This model learned to go on with texts; not to draw pictures")
        expect(page.locator("#chat-hint")).to_contain_text("learned texts alone")
        page.get_by_placeholder("Begin a text").fill("a")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("group", name="Model")).to_be_attached()
        page.context.close()


def test_a_page_offers_what_its_model_learned_and_asks_for_the_key(commands, browser, tmp_path):  # noqa: F811
    own = ["a house", "ein rotes Herz"]
    folder = write_export(tmp_path / "tiny", added=CHATML, max_position_embeddings=1024, sample_prompts=own)
    with serving(commands, folder, tmp_path / "served", "--chat-format", "plain", "--api-key", "secret") as server:
        page = browser.new_context(viewport=PHONE).new_page()
        page.goto(server.url)
        for key in ("wrong", "secret"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Open").click()
            expect(page.get_by_label("API key")).to_be_visible(visible=key == "wrong")
        expect(page.locator("body.ready")).to_be_attached()
        assert page.locator("[role=tab]:visible").all_text_contents() == ["Describe", "Generate", "Gallery"]
        words = (
            "This model learned to draw pictures and describe pictures; not to edit pictures or hold a conversation."
        )
        expect(page.locator("#skills")).to_have_text(words)
        expect(page.locator("#chat-hint")).to_contain_text("learned captions, not conversations")
        page.get_by_role("tab", name="Generate").click()
        assert page.locator("#draw-examples button").all_text_contents() == own
        page.get_by_placeholder("a house").press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Description")).to_have_value("a house")
        page.goto(f"{server.url}/api")
        fields = page.locator("#post_chat_completions")
        expect(fields).to_contain_text("max_completion_tokens")
        assert fields.locator(".wide").evaluate("box => box.scrollWidth <= box.clientWidth")
        rows = {
            row.locator("th").inner_text(): row.locator("td").first.inner_text()
            for row in fields.locator("tr").all()[1:]
        }
        assert (rows["top_p"], rows["seed"]) == ("number above 0 to 1", "integer")
        assert fits(page)
        page.context.close()
