"""What every client is asked to do, and how it says what came of it: one JSON object on the last line."""

from __future__ import annotations

import base64
import json
import os
import traceback
from collections.abc import Callable

NAMES = ("text", "history", "stream", "picture in", "draw", "edit")
URL, KEY, MODEL = os.environ["SERVER_URL"], os.environ["SERVER_KEY"], os.environ["SERVER_MODEL"]
PICTURE = os.environ["PICTURE"]
WORDS = "What is new?"
PNG = b"\x89PNG\r\n\x1a\n"


def data_uri() -> str:
    with open(PICTURE, "rb") as file:
        return "data:image/png;base64," + base64.b64encode(file.read()).decode()


def check_text(text: object) -> None:
    """An answer of the tiny model: letters without sense, and at least one."""
    assert isinstance(text, str) and text, repr(text)


def check_png(b64_json: str) -> None:
    assert base64.b64decode(b64_json).startswith(PNG)


def run(steps: dict[str, Callable[[], object] | None]) -> None:
    """Do each step that a client has; None and absent ones are those that it has not."""
    found = {}
    for name in [*NAMES, *(other for other in steps if other not in NAMES)]:
        step = steps.get(name)
        if step is None:
            found[name] = "absent"
            continue
        try:
            step()
            found[name] = "yes"
        except Exception as error:
            traceback.print_exc()
            found[name] = f"no: {type(error).__name__}: {error}"[:300]
    print(json.dumps(found), flush=True)
