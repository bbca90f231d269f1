"""pydantic-ai's Agent, over chats and over responses."""

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import KEY, MODEL, PICTURE, URL, WORDS, check_text, run

provider = OpenAIProvider(base_url=URL, api_key=KEY)
agent = Agent(OpenAIChatModel(MODEL, provider=provider), instructions="Be brief.", model_settings={"max_tokens": 16})


def text():
    check_text(agent.run_sync(WORDS).output)


def history():
    first = agent.run_sync(WORDS)
    check_text(agent.run_sync("And now?", message_history=first.all_messages()).output)


def stream():
    check_text("".join(agent.run_stream_sync(WORDS).stream_text(delta=True)))


def picture_in():
    with open(PICTURE, "rb") as file:
        check_text(agent.run_sync([WORDS, BinaryContent(data=file.read(), media_type="image/png")]).output)


def responses():
    other = Agent(OpenAIResponsesModel(MODEL, provider=provider), model_settings={"max_tokens": 16})
    first = other.run_sync(WORDS)
    check_text(first.output)
    check_text(other.run_sync("And now?", message_history=first.all_messages()).output)


run({"text": text, "history": history, "stream": stream, "picture in": picture_in, "responses": responses})
