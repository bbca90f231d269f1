"""OpenAI's agents, whose own default are responses."""

import asyncio

from agents import Agent, ModelBehaviorError, ModelSettings, OpenAIResponsesModel, Runner, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from openai import AsyncOpenAI
from steps import KEY, MODEL, URL, WORDS, check_text, data_uri, run

set_tracing_disabled(True)


def agent(kind, seed):
    client = AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    model, settings = kind(model=MODEL, openai_client=client), ModelSettings(max_tokens=200, extra_body={"seed": seed})
    return Agent(name="Short", instructions="Be brief.", model=model, model_settings=settings)


def both(ask, kinds=(OpenAIResponsesModel, OpenAIChatCompletionsModel)):
    """Agents take a response that ends at max_tokens for a failure: seeds are tried until one ends by itself."""
    for kind in kinds:
        for seed in range(40):
            try:
                asyncio.run(ask(agent(kind, seed)))
                break
            except ModelBehaviorError as error:
                if "max_output_tokens" not in str(error) or seed == 39:
                    raise


async def one(of):
    check_text((await Runner.run(of, WORDS)).final_output)


async def two(of):
    first = await Runner.run(of, WORDS)
    again = [*first.to_input_list(), {"role": "user", "content": "And now?"}]
    check_text((await Runner.run(of, again)).final_output)


async def streamed(of):
    found = Runner.run_streamed(of, WORDS)
    kinds = [event.type async for event in found.stream_events()]
    assert "raw_response_event" in kinds
    check_text(found.final_output)


async def seen(of):
    parts = [{"type": "input_text", "text": WORDS}, {"type": "input_image", "image_url": data_uri(), "detail": "auto"}]
    check_text((await Runner.run(of, [{"role": "user", "content": parts}])).final_output)


run(
    {
        "text": lambda: both(one),
        "history": lambda: both(two),
        "stream": lambda: both(streamed),
        "picture in": lambda: both(seen),
        "responses": lambda: both(two, [OpenAIResponsesModel]),
    }
)
