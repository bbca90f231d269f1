"""langchain-openai's ChatOpenAI, over chats and over responses."""

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from steps import KEY, MODEL, URL, WORDS, check_text, data_uri, run

chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0, max_tokens=16)
hello = [SystemMessage("Be brief."), HumanMessage(WORDS)]


def text():
    check_text(chat.invoke(hello).text)


def history():
    check_text(chat.invoke([*hello, chat.invoke(hello), HumanMessage("And now?")]).text)


def stream():
    check_text("".join(chunk.text for chunk in chat.stream(WORDS)))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    check_text(chat.invoke([HumanMessage(parts)]).text)


def responses():
    other = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0, max_tokens=16, use_responses_api=True)
    first = other.invoke(hello)
    check_text(first.text)
    check_text(other.invoke([*hello, first, HumanMessage("And now?")]).text)


run({"text": text, "history": history, "stream": stream, "picture in": picture_in, "responses": responses})
