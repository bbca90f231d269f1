"""What a server refuses, and that refusing changes nothing: malformed, oversized and hostile requests."""

from __future__ import annotations

import io
import json
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tools.serving_process import data_uri, picture_file, serving
from tests.tools.tiny_export import CHATML, write_export

LIMITS = ("--max-requests", 3, "--max-images", 2, "--max-tokens", 300, "--max-characters", 2000)
LIMITS += ("--max-body", 200_000, "--max-pixels", 10_000, "--batch-size", 2)


@pytest.fixture(scope="module")
def served(commands, tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("limits") / "tiny", added=CHATML, max_position_embeddings=512)
    with serving(commands, folder, tmp_path_factory.mktemp("served"), *LIMITS) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_changes(served):
    """After each test the server is at rest and draws what it drew before."""
    yield
    served.wait_until(lambda: served.requests() == 0)
    body = json.dumps({"prompt": "a cat", "seed": 1}).encode()
    status, found, _ = served.post("/v1/images/generations", body)
    assert status == 200
    before = served.brake.with_name("drawn")
    if not before.exists():
        before.write_text(found["data"][0]["b64_json"])
    assert found["data"][0]["b64_json"] == before.read_text()
    assert "Traceback" not in served.process.err.read_text()


def chat(content: object, **more: object) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]} | more).encode()


def picture_chat(url: str) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": url}}], max_tokens=1)


def png_without_pixels(width: int, height: int) -> bytes:
    """A sound header of a picture of any size, and the beginning of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)[:9])


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


CHAT_REFUSALS = {
    "no JSON": (b"{", "not JSON"),
    "no object": (b"[]", "object"),
    "empty": (b"", "not JSON"),
    "deep": (b"[" * 50_000, "not JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "not JSON"),
    "half a surrogate": (b'{"model": "\\ud800"}', "not JSON"),
    "a key twice": (b'{"model": "tiny", "max_tokens": 5, "max_tokens": 6}', "'max_tokens' is given twice"),
    "a key twice inside": (
        b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
        "'content' is given twice",
    ),
    "not a number": (chat("x", temperature=float("nan")), "temperature"),
    "huge number": (chat("x", seed=10**4000), "seed"),
    "no messages": (b'{"model": "tiny", "messages": []}', "messages"),
    "wrong type": (chat("x", max_tokens="5"), "max_tokens"),
    "negative": (chat("x", max_tokens=-1), "max_tokens"),
    "too many tokens": (chat("x", max_tokens=301), "limit is 300"),
    "hot": (chat("x", temperature=1e9), "temperature"),
    "unknown field": (chat("x", temprature=1), "did you mean 'temperature'?"),
    "tools": (chat("x", tools=[{"type": "function"}]), "calls no tools"),
    "many answers": (chat("x", n=3), "limit is 2"),
    "empty text": (chat("   "), "a text or a picture"),
    "long text": (chat("x" * 2001), "limit is 2,000"),
    "more than the model has": (chat("x" * 600), "more than the model's 512"),
    "no room": (chat("x" * 300, max_tokens=300), "has room for"),
    "empty stop": (chat("x", stop=""), "stop"),
    "five stops": (chat("x", stop=list("abcde")), "stop"),
    "role": (b'{"model": "tiny", "messages": [{"role": "tool", "content": "x"}]}', "role"),
    "last word": (b'{"model": "tiny", "messages": [{"role": "assistant", "content": "x"}]}', "must be the user's"),
    "many messages": (chat("x", messages=[{"role": "user", "content": "x"}] * 1025), "limit is 1024"),
    "many pictures": (chat([{"type": "image_url", "image_url": {"url": data_uri(picture_file())}}] * 17), "is 16"),
}


@pytest.mark.parametrize(("body", "words"), CHAT_REFUSALS.values(), ids=CHAT_REFUSALS)
def test_malformed_chats_are_refused(served, body, words):
    steps = served.steps()
    status, found, _ = served.post("/v1/chat/completions", body)
    assert status == 400 and words in found["error"]["message"], found
    assert set(found["error"]) == {"message", "type", "param", "code"} and served.steps() == steps


PICTURE_REFUSALS = {
    "address": ("http://127.0.0.1:1/a.png", "nothing is fetched"),
    "file": ("file:///etc/passwd", "nothing is fetched"),
    "text": ("data:text/html;base64,PGI+", "not base64 of a PNG"),
    "svg": ("data:image/svg+xml;base64,PHN2Zy8+", "not base64 of a PNG"),
    "no base64": ("data:image/png;base64,!!!", "not valid base64"),
    "not ASCII": ("data:image/png;base64,é", "not valid base64"),
    "nothing": ("data:image/png;base64,", "empty"),
    "no picture": (data_uri(b"GIF89a nonsense"), "not a picture"),
    "cut off": (data_uri(picture_file(size=(60, 60))[:3000]), "truncated or damaged"),
    "bomb": (data_uri(png_without_pixels(60_000, 60_000)), "limit is 10,000"),
    "too large": (data_uri(saved(Image.new("1", (200, 51)), "PNG")), "limit is 10,000"),
    "no pixels": (data_uri(png_without_pixels(10, 10)), "truncated or damaged"),
    "other decoder": (data_uri(saved(Image.new("RGB", (8, 8)), "TIFF")), "not a picture (PNG, JPEG, WEBP, GIF)"),
    "animation": (
        data_uri(
            saved(Image.new("L", (9, 9)), "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 255)]), "gif"
        ),
        "it has several frames, of which one alone would be read: send that one",
    ),
    "PostScript": (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
}


@pytest.mark.parametrize(("url", "words"), PICTURE_REFUSALS.values(), ids=PICTURE_REFUSALS)
def test_hostile_pictures_are_refused(served, url, words):
    steps = served.steps()
    status, found, _ = served.post("/v1/chat/completions", picture_chat(url))
    assert status == 400 and words in found["error"]["message"], found
    assert served.steps() == steps


def test_odd_but_sound_pictures_are_taken(served):
    for picture in (Image.new("L", (1, 10_000)), Image.new("RGBA", (3, 3)), Image.new("P", (5, 2))):
        assert served.post("/v1/chat/completions", picture_chat(data_uri(saved(picture, "PNG"))))[0] == 200


def test_pictures_that_are_not_made_are_refused(served):
    refused = [
        ({"size": "large"}, "give WIDTHxHEIGHT"),
        ({"size": "0x8"}, "give WIDTHxHEIGHT"),
        ({"size": "101x100"}, "limit of 10,000 pixels"),
        ({"n": 3}, "limit is 2"),
        ({"response_format": "file"}, "'b64_json' or 'url'"),
        ({"output_compression": 50}, "PNG loses nothing"),
        ({"partial_images": 2}, "events of a stream"),
        ({"background": "transparent"}, "no transparent parts"),
        ({"extra_body": {"guidance": -1}}, "guidance"),
        ({"extra_body": {"image_guidance": 2}}, "not a field"),
        ({"model": "other"}, "no model 'other'"),
        ({"prompt": " "}, "give some text"),
    ]
    for asked, words in refused:
        with pytest.raises(openai.APIStatusError, match=words) as problem:
            served.client.images.generate(**{"prompt": "x", **asked})
        assert problem.value.status_code in (400, 404)


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart body of (name, and filename if it is a file) and content, and its type."""
    lines = [
        b"--edge\r\nContent-Disposition: form-data; name=" + name.encode() + b"\r\n\r\n" + content + b"\r\n"
        for name, content in parts
    ]
    return b"".join(lines) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


FILE = '"image"; filename="a.png"'
FORM_REFUSALS = {
    "no picture": ([('"prompt"', b"x")], "no picture to edit"),
    "picture as text": ([('"prompt"', b"x"), ('"image"', b"x")], "it is no file"),
    "mask": ([('"prompt"', b"x"), (FILE, b"x"), ('"mask"; filename="m.png"', b"x")], "an edit has no mask"),
    "other file": (
        [('"prompt"', b"x"), (FILE, b"x"), ('"photo"; filename="m.png"', b"x")],
        "only 'image' takes a file",
    ),
    "no prompt": ([(FILE, picture_file())], "prompt: it is missing"),
    "twice": ([('"prompt"', b"x"), ('"prompt"', b"y"), (FILE, picture_file())], "given twice"),
    "number": (
        [('"prompt"', b"x"), ('"n"', b"many"), (FILE, picture_file())],
        'n is "many": it must be a whole number',
    ),
    "long field": ([('"prompt"', b"x" * 10_000), (FILE, picture_file())], "exceeded maximum size"),
    "many fields": ([(f'"f{number}"', b"x") for number in range(60)], "Too many fields"),
    "many files": ([('"prompt"', b"x")] + [(FILE, b"x")] * 18, "Too many files"),
    "bad file": ([('"prompt"', b"x"), (FILE, b"<svg/>")], "image: not a picture"),
}


@pytest.mark.parametrize(("parts", "words"), FORM_REFUSALS.values(), ids=FORM_REFUSALS)
def test_malformed_edits_are_refused(served, parts, words):
    status, found, _ = served.post("/v1/images/edits", *form(*parts))
    assert status == 400 and words in found["error"]["message"], found


def test_a_form_that_is_none_is_refused(served):
    for body, kind in [
        (b"{}", "application/json"),
        (b"--edge", "multipart/form-data; boundary=edge"),
        (b"x", "multipart/form-data"),
    ]:
        status, found, _ = served.post("/v1/images/edits", body, kind)
        assert status == 400 and found["error"]["message"], found


NAMES = ["model", "messages", "role", "content", "type", "text", "image_url", "url", "seed", "stop", "n"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
        max_leaves=12,
    )
)
def test_any_json_gets_a_clear_answer(served, value):
    for path in ("/v1/chat/completions", "/v1/images/generations"):
        status, found, _ = served.post(path, json.dumps(value).encode())
        assert status in (400, 404) and found["error"]["message"], (value, found)


def test_two_limits_of_one_answer_are_refused_where_they_differ(served):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for other, expected in ((2, 200), (5, 400)):
        body = json.dumps({**asked, "max_completion_tokens": other}).encode()
        status, found, _ = served.post("/v1/chat/completions", body)
        assert status == expected and (status == 200 or "max_tokens is 2 and max_completion_tokens 5" in str(found))


def test_unknown_addresses_and_methods(served):
    for path in ("/v1/embeddings", "/chat/completions"):
        assert served.post(path, b"{}")[1]["error"]["message"] == f"POST {path}: Not Found: /api lists what there is"
    assert served.get("/v1/none")[0] == 404 and served.get("/v1/chat/completions")[0] == 405
    assert served.post("/v1/none", b"{}")[1]["error"]["type"] == "not_found_error"
    assert served.get("/page/../../../tools/serve.py")[0] == served.get("/page/%2e%2e/app.py")[0] == 404


def raw(served, *lines: str, body: bytes = b"") -> bytes:
    """The beginning of the answer to a request of these very lines."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        found = b""
        while more := connection.recv(65536):
            found += more
            head, _, rest = found.partition(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            if length and len(rest) >= int(length[0].split(b":")[1]):
                break
    return found


def test_pages_of_others_are_not_answered(served):
    name = served.url.removeprefix("http://")
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        status, found, _ = served.post("/v1/images/generations", b'{"prompt": "x"}', "text/plain", **headers)
        assert status == 403 and found["error"]["type"] == "permission_error"
    assert served.post("/v1/images/generations", b'{"prompt": "x"}', Origin=f"http://{name}")[0] == 200


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/none", "/page/page.js"])
@pytest.mark.parametrize("host", ["[", "[::1", "]", "a b", "a@b", "http://x", "x:y", "[]]:1", "\\", "x/y", "\xff["])
def test_a_malformed_host_is_refused(served, path, host):
    assert raw(served, f"GET {path} HTTP/1.1", f"Host: {host}").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("origin", ["[", "http://[", "http://[::1", "//", "http://a b", "x" * 9999, "http://\xff]"])
def test_a_malformed_origin_is_refused(served, origin):
    host = served.url.removeprefix("http://")
    found = raw(served, "GET /v1/models HTTP/1.1", f"Host: {host}", f"Origin: {origin}")
    assert found.startswith(b"HTTP/1.1 403") and b"wrong_origin" in found


@pytest.mark.parametrize(
    "line",
    [
        "Content-Length: \xb2",
        "Content-Length: -1",
        "Content-Length: " + "9" * 19,
        "Content-Length: " + "9" * 5000,
        "Content-Type: multipart/form-data; boundary=\xff",
        "Content-Type: multipart/form-data; boundary=x; charset=none",
        "Content-Type: multipart/form-data; boundary=" + "x" * 300,
        "Content-Type: ;;;==",
        "Authorization: \xff\xff",
        "Transfer-Encoding: gzip",
        "Expect: 200-ok",
    ],
)
def test_malformed_headers_are_refused(served, line):
    host = served.url.removeprefix("http://")
    lines = [line] if line.startswith(("Content-Length", "Transfer")) else ["Content-Length: 9", line]
    found = raw(served, "POST /v1/images/edits HTTP/1.1", f"Host: {host}", *lines, body=b"--x\r\nabc\n")
    assert found.split()[1][:1] == b"4", found


@pytest.mark.parametrize(
    "path", ["/%00", "/page/%00", "/page/%ff", "/v1/models/%00", "/%ff", "/pictures/%00.png", "/v1/models?x=%ff&["]
)
def test_odd_addresses_are_answered(served, path):
    host = served.url.removeprefix("http://")
    assert raw(served, f"GET {path} HTTP/1.1", f"Host: {host}").split()[1] in (b"200", b"400", b"404")


def test_a_probe_finds_the_health_by_any_name_and_address(served):
    for host in ("10.1.2.3:8000", "[fd00::1]:8000", "server.cluster.local", "x", ""):
        assert raw(served, "GET /health HTTP/1.1", f"Host: {host}").startswith(b"HTTP/1.1 200")
    assert raw(served, "GET /health HTTP/1.0").startswith(b"HTTP/1.1 200")
    assert raw(served, "GET /v1/models HTTP/1.1", "Host: 10.1.2.3:8000").startswith(b"HTTP/1.1 200")
    assert raw(served, "GET /v1/models HTTP/1.1", "Host: server.cluster.local").startswith(b"HTTP/1.1 403")


def test_clients_that_leave_in_the_middle_of_a_body_leave_no_trace(served):
    host, port = served.url.removeprefix("http://").split(":")
    form, before = "Content-Type: multipart/form-data; boundary=x", served.process.err.read_text()
    for path, kind in [("chat/completions", "X: y"), ("images/generations", "X: y"), ("images/edits", form)] * 8:
        with socket.create_connection((host, int(port)), timeout=300) as connection:
            head = f"POST /v1/{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{kind}\r\nContent-Length: 999\r\n\r\n--x\r\n"
            connection.sendall(head.encode())
            served.wait_until(lambda: served.requests() == 1)
        served.wait_until(lambda: served.requests() == 0)
    assert served.process.err.read_text() == before


def test_large_bodies_are_refused_unread(served):
    with pytest.raises(openai.APIStatusError) as problem:
        served.client.images.generate(prompt="x" * 250_000)
    assert problem.value.status_code == 413 and "200,000 bytes" in problem.value.message
    # a body of unknown length is counted as it comes
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(5):
            connection.sendall(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 413")


def test_a_full_queue_says_when_to_come_back(served):
    served.brake.touch()
    body = json.dumps({"prompt": "x"}).encode()
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(served.post, "/v1/images/generations", body) for _ in range(3)]
        served.wait_until(lambda: served.requests() == 3)
        status, found, headers = served.post("/v1/images/generations", body)
        assert status == 429 and found["error"]["code"] == "queue_full" and int(headers["Retry-After"]) >= 1
        with pytest.raises(openai.RateLimitError):
            served.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
        assert served.get("/v1/models")[0] == 200  # what costs nothing is answered
        served.brake.unlink()
        assert [one.result()[0] for one in held] == [200] * 3


def test_clients_that_leave_cost_nothing_more(served):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "temperature": 0}
    steps = served.steps()
    whole = served.client.chat.completions.create(**asked)
    assert whole.usage.completion_tokens == 300 and served.steps() - steps >= 300
    steps = served.steps()
    stream = served.client.chat.completions.create(**asked, stream=True)
    while not next(stream).choices[0].delta.content:
        pass
    served.brake.touch()  # one leaves in the middle of its answer, one before its answer is begun
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as waiting:
        body = chat("y", max_tokens=300)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        waiting.sendall(head.encode() + body)
        served.wait_until(lambda: served.requests() == 2)
        stream.close()
        served.wait_until(lambda: served.requests() == 1)
    served.wait_until(lambda: served.requests() == 0)
    served.brake.unlink()
    draw = json.dumps({"prompt": "x"}).encode()
    assert served.post("/v1/images/generations", draw)[0] == 200  # what comes next is not held up
    assert served.steps() - steps < 300


def test_answers_that_take_too_long_end(commands, tmp_path):
    export = write_export(tmp_path / "tiny", added=CHATML, max_position_embeddings=512)
    with serving(commands, export, tmp_path / "served", "--timeout", 0.5) as server:
        server.brake.touch()
        status, found, headers = server.post("/v1/images/generations", b'{"prompt": "x"}')
        assert status == 504 and "not done after 0.5 s" in found["error"]["message"] and headers["Retry-After"] == "1"
        stream = server.client.images.generate(prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="not done after 0.5 s"):
            next(iter(stream))
        assert server.requests() == 0
        server.brake.unlink()
