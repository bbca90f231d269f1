"""LiteLLM with the provider `openai/`, and its pictures."""

import litellm
from steps import KEY, MODEL, PICTURE, URL, WORDS, check_png, check_text, data_uri, run

own = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}
hello = [{"role": "user", "content": WORDS}]


def ask(messages, **more):
    return litellm.completion(messages=messages, max_tokens=16, num_retries=0, **own, **more)


def text():
    check_text(ask(hello).choices[0].message.content)


def history():
    again = [*hello, ask(hello).choices[0].message, {"role": "user", "content": "And now?"}]
    check_text(ask(again).choices[0].message.content)
    dumped = [*hello, ask(hello).choices[0].message.model_dump(), {"role": "user", "content": "And now?"}]
    check_text(ask(dumped).choices[0].message.content)


def stream():
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in ask(hello, stream=True)))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    check_text(ask([{"role": "user", "content": parts}]).choices[0].message.content)


def draw():
    check_png(litellm.image_generation(prompt="a cat", size="1024x1024", n=1, **own).data[0].b64_json)


def edit():
    with open(PICTURE, "rb") as file:
        check_png(litellm.image_edit(image=file, prompt="redder", **own).data[0].b64_json)


run({"text": text, "history": history, "stream": stream, "picture in": picture_in, "draw": draw, "edit": edit})
