"""smolagents' OpenAIModel. Its agents need a model that writes code."""

from PIL import Image
from smolagents import OpenAIModel
from steps import KEY, MODEL, PICTURE, URL, WORDS, check_text, run

model = OpenAIModel(model_id=MODEL, api_base=URL, api_key=KEY, max_tokens=16)
hello = [{"role": "user", "content": [{"type": "text", "text": WORDS}]}]


def text():
    check_text(model.generate(hello).content)


def history():
    first = model.generate(hello)
    check_text(model.generate([*hello, first, {"role": "user", "content": [{"type": "text", "text": "Now?"}]}]).content)


def stream():
    check_text("".join(delta.content or "" for delta in model.generate_stream(hello)))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image", "image": Image.open(PICTURE)}]
    check_text(model.generate([{"role": "user", "content": parts}]).content)


run({"text": text, "history": history, "stream": stream, "picture in": picture_in})
