"""The official client, as its README shows it; versions 3 and 1."""

import openai
from steps import KEY, MODEL, PICTURE, URL, WORDS, check_png, check_text, data_uri, run

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
asked = {"model": MODEL, "max_tokens": 16, "temperature": 1.0, "seed": 1}
hello = [{"role": "user", "content": WORDS}]


def text():
    check_text(client.chat.completions.create(messages=hello, **asked).choices[0].message.content)


def history():
    first = client.chat.completions.create(messages=hello, **asked)
    again = [*hello, first.choices[0].message, {"role": "user", "content": "And now?"}]
    check_text(client.chat.completions.create(messages=again, **asked).choices[0].message.content)


def stream():
    chunks = client.chat.completions.create(messages=hello, stream=True, **asked)
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": data_uri(), "detail": "high"}}]
    check_text(
        client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)
        .choices[0]
        .message.content
    )


def draw():
    for size in ("1024x1024", "auto"):
        found = client.images.generate(model=MODEL, prompt="a cat", size=size, n=1, quality="auto")
        check_png(found.data[0].b64_json)


def edit():
    with open(PICTURE, "rb") as file:
        check_png(client.images.edit(model=MODEL, image=file, prompt="redder").data[0].b64_json)


def responses():
    first = client.responses.create(model=MODEL, instructions="Be brief.", input=WORDS, max_output_tokens=16)
    check_text(first.output_text)
    second = client.responses.create(model=MODEL, input="And now?", previous_response_id=first.id, max_output_tokens=16)
    check_text(second.output_text)
    with client.responses.stream(model=MODEL, input=WORDS, max_output_tokens=16) as events:
        found = list(events)  # get_final_response() knows no answer that ends at max_output_tokens
    check_text(found[-1].response.output_text)
    kinds = [event.type for event in found]
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds, kinds


def completions():
    found = client.completions.create(model=MODEL, prompt="Once", max_tokens=4, logprobs=2, echo=True)
    assert found.choices[0].text.startswith("Once") and found.choices[0].logprobs.token_logprobs[0] is None


steps = {"text": text, "history": history, "stream": stream, "picture in": picture_in, "draw": draw, "edit": edit}
run({**steps, "responses": responses, "completions": completions})
