"""The server behind a real nginx with the documented configuration, asked by the name that the world knows."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import openai
import pytest

from tests.tools.serving_process import Served, picture_file, serving
from tests.tools.tiny_export import CHATML, write_export

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
NAME = "chat.example.org"
ORIGIN = f"https://{NAME}"


@pytest.fixture(scope="module")
def served(commands, tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("proxy") / "tiny", added=CHATML, max_position_embeddings=1024)
    with serving(commands, folder, tmp_path_factory.mktemp("served"), "--allow-host", NAME) as server:
        yield server


@pytest.fixture(scope="module")
def port(served, tmp_path_factory):
    """A running nginx with the configuration of docs/serving.md, but for its ports and its certificate."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        reason = "no nginx is installed: apt-get install nginx-light"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen = free.getsockname()[1]
    certificate(folder)
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    block = block.replace("listen 443", f"listen 127.0.0.1:{chosen}").replace("http://127.0.0.1:8000", served.url)
    block = block.replace("/etc/ssl/", f"{folder}/")
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; user root;\n"
        f"events {{}} http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n{block}}}\n"
    )
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", chosen), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    yield chosen
    process.terminate()
    process.wait(60)


def certificate(folder: Path) -> None:
    """A key and a certificate that it signed itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    (folder / f"{NAME}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{NAME}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))


class ByName(http.client.HTTPSConnection):
    """A connection to nginx on this machine that calls it by its public name."""

    def __init__(self, port: int) -> None:
        super().__init__(NAME, port, context=ssl._create_unverified_context(), timeout=300)

    def connect(self) -> None:
        connection = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = self._context.wrap_socket(connection, server_hostname=NAME)


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
    connection = ByName(port)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": NAME, "Content-Length": str(len(body)), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection.getresponse()


def test_the_page_of_the_public_name_may_ask(port):
    assert ask(port, "GET", "/").status == ask(port, "GET", "/page/page.js").status == 200
    body = json.dumps({"prompt": "a cat", "response_format": "url"}).encode()
    answer = ask(port, "POST", "/v1/images/generations", body, Origin=ORIGIN)
    found = json.load(answer)
    assert answer.status == 200, found
    assert found["data"][0]["url"].startswith(f"{ORIGIN}/pictures/")  # an address that the world can open
    picture = ask(port, "GET", found["data"][0]["url"].removeprefix(ORIGIN))
    assert picture.status == 200 and picture.read().startswith(b"\x89PNG")
    assert ask(port, "POST", "/v1/images/generations", body, Origin="https://evil.example").status == 403
    assert ask(port, "GET", "/v1/models", Host="evil.example").status == 403


def test_streams_come_as_they_grow(served, port):
    served.brake.touch()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": True}
    answer = ask(port, "POST", "/v1/chat/completions", json.dumps(asked).encode(), Origin=ORIGIN)
    assert answer.readline().startswith(b"data: ")  # while the model is still held
    served.brake.unlink()
    assert b"data: [DONE]" in answer.read()


def test_a_client_that_leaves_frees_its_place(served, port):
    served.brake.touch()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "stream": True}
    body = json.dumps(asked).encode()
    connection = ByName(port)
    connection.connect()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sock.sendall(head.encode() + body)
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 200")
    assert served.requests() == 1
    connection.sock.close()
    served.wait_until(lambda: served.requests() == 0)
    served.brake.unlink()


def test_large_uploads_pass_and_too_large_ones_do_not(port):
    large = picture_file(size=(1000, 900))
    assert len(large) > 2_000_000  # nginx's own limit is 1 MB
    edge = b'--e\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + large
    form = edge + b'\r\n--e\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nredder\r\n--e--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=e"}
    assert ask(port, "POST", "/v1/images/edits", form, **kind).status == 200
    too_large = {**kind, "Content-Length": str(21 << 20)}  # refused by its length, before it is sent
    assert ask(port, "POST", "/v1/images/edits", **too_large).status == 413


def test_a_proxy_that_names_the_server_by_its_address(commands, tmp_path):
    """Host is the server's own, Origin the public one: refused, unless it is allowed."""
    folder = write_export(tmp_path / "tiny", added=CHATML, max_position_embeddings=512)
    body = b'{"prompt": "a cat"}'

    def status(server: Served) -> int:
        return server.post("/v1/images/generations", body, Origin=ORIGIN)[0]

    with serving(commands, folder, tmp_path / "closed") as server:
        assert status(server) == 403
        with pytest.raises(openai.PermissionDeniedError, match="--allow-origin"):
            server.client.with_options(default_headers={"Origin": ORIGIN}).models.list()
    with serving(commands, folder, tmp_path / "open", "--allow-origin", ORIGIN) as server:
        assert status(server) == 200
        assert server.post("/v1/images/generations", body, Origin="https://evil.example")[0] == 403
