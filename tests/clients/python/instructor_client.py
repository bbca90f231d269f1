"""instructor without a response model: it needs tools or JSON for one, which this server refuses by name."""

import instructor
import openai
from steps import KEY, MODEL, URL, WORDS, check_text, data_uri, run

client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=instructor.Mode.MD_JSON)
hello = [{"role": "user", "content": WORDS}]


def ask(messages, **more):
    return client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=16, response_model=None, max_retries=0, **more
    )


def text():
    check_text(ask(hello).choices[0].message.content)


def history():
    again = [*hello, ask(hello).choices[0].message.model_dump(), {"role": "user", "content": "And now?"}]
    check_text(ask(again).choices[0].message.content)


def stream():
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in ask(hello, stream=True)))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    check_text(ask([{"role": "user", "content": parts}]).choices[0].message.content)


run({"text": text, "history": history, "stream": stream, "picture in": picture_in})
