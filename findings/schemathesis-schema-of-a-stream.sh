#!/usr/bin/env bash
# schemathesis 4.30.0 (PyPI): an answer of text/event-stream whose schema is {"type": "string"}, as OpenAPI 3.1 documents one.
#
# Expected: OpenAPI 3.1 has no schema of a stream's parts, so "schema" is of the whole body: a string, which every body of text
# is. (The schema of a part is `itemSchema`, which came with OpenAPI 3.2.) Seen: the schema is applied to each event as an object
# with the names of its fields, and a correct stream fails: "SSE event violates schema", '... is not of type "string"'. Without a
# schema, the same stream passes.
#
# What follows for the description of a server that streams: give text/event-stream no schema in a 3.1 document.
#
# Output seen:
#   schema of the stream {"type": "string"}: exit code 1, SSE event violates schema
#   schema of the stream left out: exit code 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.30.0
cat > "$folder/see.py" <<'PYTHON'
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

program = Path(sys.executable).with_name("st")


def described(stream: dict) -> dict:
    answers = {"200": {"description": "two words", "content": {"text/event-stream": stream}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "words", "version": "1"},
        "paths": {"/words": {"get": {"operationId": "words", "responses": answers}}},
    }


class Handler(BaseHTTPRequestHandler):
    stream: dict = {}

    def do_GET(self):
        if self.path == "/openapi.json":
            kind, body = "application/json", json.dumps(described(self.stream)).encode()
        else:
            kind, body = "text/event-stream", b"event: word\ndata: once\n\nevent: word\ndata: upon\n\n"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def tried(stream: dict) -> tuple[int, bool]:
    Handler.stream = stream
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    scheme = "http"
    command = [program, "run", f"{scheme}://127.0.0.1:{server.server_port}/openapi.json", "-n", "5",
               "--checks", "response_schema_conformance"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    server.shutdown()
    return done.returncode, "SSE event violates schema" in done.stdout


code, violated = tried({"schema": {"type": "string"}})
print(f'schema of the stream {{"type": "string"}}: exit code {code}' + ", SSE event violates schema" * violated)
bare, also = tried({})
print(f"schema of the stream left out: exit code {bare}" + ", SSE event violates schema" * also)
assert (bare, also) == (0, False)
assert code == 1 and violated, "this version takes the schema for that of the body: the finding no longer holds"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
