#!/usr/bin/env bash
# openai 3.57.0 (PyPI), responses.stream(): the answer that ends at max_output_tokens.
#
# Expected: a stream that ends with the documented event `response.incomplete` gives its final response, whose status is
# `incomplete`, as the same request without a stream does. Seen: get_final_response() and until_done() raise RuntimeError
# ("Didn't receive a `response.completed` event."), though every event was read and the text is whole. The same with
# version 1.109.1. openai-agents 0.24.0 turns the event into ModelBehaviorError.
#
# What follows for a server of such clients: an agent fails wherever its answer meets the limit, so the default limit
# must be large, and clients with a limit have to read the events.
#
# Output seen:
#   events: response.created response.output_text.delta response.incomplete
#   text of the last event: Once upon
#   get_final_response: RuntimeError: Didn't receive a `response.completed` event.
#   without a stream: incomplete, Once upon
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
cat > "$folder/see.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

part = {"type": "output_text", "text": "Once upon", "annotations": [], "logprobs": []}
message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "incomplete", "content": [part]}
begun = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": [],
    "parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None,
}
ended = {**begun, "status": "incomplete", "output": [message], "incomplete_details": {"reason": "max_output_tokens"}}
where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
blank = {**message, "status": "in_progress", "content": []}
events = [
    {"type": "response.created", "response": begun},
    {"type": "response.output_item.added", "output_index": 0, "item": blank},
    {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
    {"type": "response.output_text.delta", **where, "delta": "Once upon", "logprobs": []},
    {"type": "response.output_text.done", **where, "text": "Once upon", "logprobs": []},
    {"type": "response.content_part.done", **where, "part": part},
    {"type": "response.output_item.done", "output_index": 0, "item": message},
    {"type": "response.incomplete", "response": ended},
]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        lines = [f"event: {e['type']}\ndata: {json.dumps({**e, 'sequence_number': n})}\n\n" for n, e in enumerate(events)]
        stream = asked.get("stream")
        body = ("".join(lines) if stream else json.dumps(ended)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
scheme = "http"
client = openai.OpenAI(base_url=f"{scheme}://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
asked = {"model": "m", "input": "Tell a story.", "max_output_tokens": 2}
with client.responses.stream(**asked) as stream:
    found = list(stream)
    kinds = [event.type for event in found]
    print("events:", kinds[0], "response.output_text.delta" * ("response.output_text.delta" in kinds), kinds[-1])
    print("text of the last event:", found[-1].response.output_text)
    try:
        print("get_final_response:", stream.get_final_response().status)
        raised = False
    except RuntimeError as error:
        print(f"get_final_response: RuntimeError: {error}")
        raised = True
whole = client.responses.create(**asked)
print(f"without a stream: {whole.status}, {whole.output_text}")
assert kinds[-1] == "response.incomplete" and whole.status == "incomplete"
assert raised, "this version gives the response: the finding no longer holds"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
