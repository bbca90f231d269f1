"""Pictures as clients ask for them: any size, as addresses, in other formats, from any spelling of an upload."""

from __future__ import annotations

import base64
import io
import json
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from tests.tools.serving_process import data_uri, picture_file, pixels_of, serving
from tests.tools.tiny_export import CHATML, write_export
from tools.serving.pictures import asked_size, bytes_of_data_uri, file_of, fitted, nearest
from tools.serving.response_store import ResponseStore


@pytest.fixture(scope="module")
def served(commands, tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("pictures") / "model", added=CHATML, max_position_embeddings=512)
    flags = ("--api-key", "secret", "--allow-origin", "https://chat.example.org")
    with serving(commands, folder, tmp_path_factory.mktemp("served"), *flags) as server:
        yield server


def draw(served, **asked):
    body = json.dumps({"prompt": "a cat", "seed": 1, **asked}).encode()
    return served.post("/v1/images/generations", body, Authorization="Bearer secret")


def opened(b64_json: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def test_any_size_is_drawn_and_resized(served):
    own = pixels_of(draw(served)[1]["data"][0]["b64_json"])
    for size, true in [("auto", (8, 8)), ("64x64", (64, 64)), ("1792x1024", (1024, 1024)), ("5x9", (5, 5))]:
        status, found, _ = draw(served, size=size)
        picture = opened(found["data"][0]["b64_json"])
        assert status == 200 and picture.size == true and found["size"] == "{}x{}".format(*true)
        expected = own if true == (8, 8) else np.asarray(Image.fromarray(own).resize(true, Image.Resampling.LANCZOS))
        assert np.array_equal(np.asarray(picture), expected)


def test_sizes_are_fitted_without_distortion():
    shapes = [(512, 512), (640, 384), (384, 640)]
    assert nearest(shapes, (1792, 1024)) == 1 and nearest(shapes, (100, 101)) == 0 and nearest(shapes, (9, 16)) == 2
    assert nearest(shapes, None) is None and fitted((512, 512), None) == (512, 512)
    assert fitted((640, 384), (1792, 1024)) == (1707, 1024) and fitted((512, 512), (1, 4000)) == (1, 1)
    assert asked_size("1024x768", 10**9) == (1024, 768) and asked_size("auto", 1) is None


def test_pictures_as_addresses(served):
    status, found, _ = draw(served, response_format="url", n=2)
    assert status == 200 and all(set(one) == {"url"} for one in found["data"])
    whole = draw(served, n=2)[1]["data"]
    for one, other in zip(found["data"], whole, strict=True):
        assert one["url"].startswith(f"{served.url}/pictures/") and one["url"].endswith(".png")
        with urlopen(one["url"]) as answer:  # without the key: a page's <img> sends none
            assert (
                answer.read() == base64.b64decode(other["b64_json"]) and answer.headers["Content-Type"] == "image/png"
            )
    status, found, _ = served.get("/pictures/none.png")
    assert status == 404 and "kept for 60 minutes" in found["error"]["message"]


def test_other_formats(served):
    own = pixels_of(draw(served)[1]["data"][0]["b64_json"]).astype(int)
    for kind in ("jpeg", "webp"):
        found = draw(served, output_format=kind, output_compression=95)[1]
        picture = opened(found["data"][0]["b64_json"])
        assert picture.format == kind.upper() and found["output_format"] == kind
        assert abs(np.asarray(picture.convert("RGB")).astype(int) - own).mean() < 40
        small = file_of(Image.fromarray(own.astype(np.uint8)).resize((64, 64)), (64, 64), kind, 10)
        assert len(small) < len(file_of(Image.fromarray(own.astype(np.uint8)).resize((64, 64)), (64, 64), kind, 95))


@pytest.mark.parametrize("names", [["image"], ["image[]"], ["image[0]", "image[1]"], ["image", "image"]])
def test_uploads_in_every_spelling(served, names):
    def part(name: str, content: bytes, file: bool = False) -> bytes:
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"' + ('; filename="a.png"' if file else "")
        return head.encode() + b"\r\n\r\n" + content + b"\r\n"

    files = [part(name, picture_file(number), file=True) for number, name in enumerate(names)]
    empty = [part(name, b"") for name in ("n", "size", "quality", "mask", "user", "seed")]
    nothing = b'--edge\r\nContent-Disposition: form-data; name="mask"; filename=""\r\n\r\n\r\n'
    body = b"".join([part("prompt", b"redder"), *files, *empty, nothing]) + b"--edge--\r\n"
    kind = "multipart/form-data; boundary=edge"
    status, found, _ = served.post("/v1/images/edits", body, kind, Authorization="Bearer secret")
    assert status == 200 and found["usage"]["input_tokens_details"]["image_tokens"] == 16 * len(names), found
    cut = body.removesuffix(b"--edge--\r\n") + b'--edge\r\nContent-Disposition: form-data; name="n"\r\n\r\n2'
    status, found, _ = served.post("/v1/images/edits", cut, kind, Authorization="Bearer secret")
    assert status == 400 and "without its closing boundary" in found["error"]["message"], found


@pytest.mark.parametrize(
    "head", ["image/PNG", "IMAGE/png;charset=utf-8", "image/png;charset=utf-8;name=a.png", "image/jpg"]
)
def test_data_uris_in_every_spelling(head):
    data = picture_file()
    encoded = base64.encodebytes(data).decode()  # in lines of 76 letters
    assert bytes_of_data_uri(f"data:{head};base64,{encoded}", "x") == data
    assert bytes_of_data_uri(data_uri(data), "x") == data


def test_a_key_is_asked_for(served):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, found, answer = served.get("/v1/models", **headers)
        assert status == 401 and found["error"]["code"] == "invalid_api_key" and answer["WWW-Authenticate"] == "Bearer"
    status, found, _ = served.get("/v1/models", Authorization="Bearer secret")
    assert status == 200 and found["data"][0]["id"].endswith("-model") and served.get("/health")[0] == 200


def test_a_page_of_another_origin(served):
    allowed = {"Origin": "https://chat.example.org", "Authorization": "Bearer secret"}
    status, _, headers = served.get("/v1/models", **allowed)
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    status, _, headers = served.get("/v1/models", **allowed | {"Origin": "https://other.example.org"})
    assert "Access-Control-Allow-Origin" not in headers
    status, _, headers = served.get("/v1/models", Origin="https://chat.example.org")  # errors can be read, too
    assert status == 401 and headers["Access-Control-Allow-Origin"] == "https://chat.example.org"


def test_metrics_count_what_was_done(served):
    draw(served)
    with urlopen_with_key(served, "/metrics") as answer:
        text = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['uni_x_requests_total{code="200",route="/v1/images/generations"}']) >= 1
    assert float(values['uni_x_pictures_total{task="draw"}']) >= 1
    assert float(values['uni_x_picture_seconds_count{task="draw"}']) >= 1
    assert float(values["process_resident_memory_bytes"]) > 2**20 and float(values["uni_x_queue_length"]) == 0
    assert not any("/none" in name for name in values)


def urlopen_with_key(served, path: str):
    from urllib.request import Request

    return urlopen(Request(served.url + path, headers={"Authorization": "Bearer secret"}))


def test_the_description_of_the_api_is_of_the_same_models(served):
    status, found, _ = served.get("/openapi.json")
    assert status == 200 and found["openapi"].startswith("3.1") and found["security"] == [{"key": []}]
    chat = found["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["temperature"]["anyOf"][0]["maximum"] == 10 and chat["tools"]["enum"] == [[]]
    form = found["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["image", "prompt"] and form["additionalProperties"] is False


def test_the_description_fits_tools_that_read_it(served):
    """schemathesis 4.30 takes the schema of a stream for that of one event, others for that of the text: there is none."""
    _, found, _ = served.get("/openapi.json")
    operations = [each for methods in found["paths"].values() for each in methods.values()]
    answers = [each["responses"]["200"] for each in operations]
    streams = [answer["content"]["text/event-stream"] for answer in answers if "text/event-stream" in answer["content"]]
    assert len(streams) == 5 and not any(streams)
    links = [link["operationId"] for answer in answers for link in answer.get("links", {}).values()]
    assert len(links) == 2 and set(links) < {each["operationId"] for each in operations}


def test_what_is_kept_ends_with_its_time_and_its_room():
    shelf = ResponseStore(60.0, 10, len)
    names = [shelf.put("x" * 4) for _ in range(3)]
    assert shelf.get(names[0]) is None and shelf.get(names[1]) == shelf.get(names[2]) == "xxxx"
    assert shelf.drop(names[1]) and not shelf.drop(names[1]) and shelf.taken == 4
    shelf.put("x" * 11)
    assert shelf.taken == 0 and not shelf.things
    short = ResponseStore(-1.0, 10)
    assert short.get(short.put("x")) is None
