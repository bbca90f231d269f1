"""Prompts of conversations: with turns where the model was trained on them, else as one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from model.prompts import conversation_ids, image_to_text_ids, picture_ids
from tools.serving.api_error import ApiError
from tools.serving.pictures import bytes_of_data_uri
from tools.serving.schemas.chat import AssistantMessage, Message
from tools.serving.service import Service

Turn = tuple[str, list[str | None]]  # role and parts: texts, and None where a picture stands


def turns_of(messages: Sequence[Message]) -> tuple[list[Turn], list[bytes]]:
    """Turns of a chat and its image files, in order. Raises ApiError 400."""
    turns: list[Turn] = []
    files: list[bytes] = []
    for number, message in enumerate(messages):
        content: Any = message.content
        if isinstance(message, AssistantMessage) and content is None:  # a refusal, or an empty answer
            content = message.refusal or ""
        parts: list[str | None] = []
        for place, part in enumerate([content] if isinstance(content, str) else content):
            if isinstance(part, str):
                parts.append(part)
            elif part.type == "image_url":
                files.append(bytes_of_data_uri(part.image_url.url, f"messages.{number}.content.{place}.image_url"))
                parts.append(None)
            else:
                parts.append(part.text if part.type == "text" else part.refusal)
        turns.append(("system" if message.role == "developer" else message.role, parts))
    return turns, files


def check_turns(service: Service, turns: Sequence[Turn], param: str) -> None:
    """Raises ApiError 400 for conversations that are too long, or that do not end with the user."""
    limit = service.limits.messages
    if len(turns) > limit:
        raise ApiError(400, f"{param}: {len(turns)} messages, the limit is {limit}", param, "invalid_value")
    role, parts = turns[-1]
    if role == "assistant":
        message = f"{param}: the last one must be the user's: the beginning of an answer cannot be given"
        raise ApiError(400, message, param, "invalid_value")
    if not any(part is None or part.strip() for part in parts):
        raise ApiError(400, f"{param}: the last one must have a text or a picture", param, "invalid_value")
    service.check_words([part for _, parts in turns for part in parts if part], param)


def prompt_of(service: Service, turns: Sequence[Turn]) -> Callable:
    """Function that makes the ids of a conversation from the codes of its images."""
    return turns_prompt(service, turns) if service.turns else plain_prompt(service, turns)


def turns_prompt(service: Service, turns: Sequence[Turn]) -> Callable:
    """Prompt with turns, as in training on conversations. An image alone gets a question about its content."""
    export = service.export
    question = export.templates.image_to_text[0]

    def ids(codes: Sequence) -> tuple[list[int], None]:
        left = iter(codes)
        filled = [(role, [next(left) if part is None else part for part in parts]) for role, parts in turns]
        if not any(isinstance(part, str) and part.strip() for part in filled[-1][1]):
            filled[-1] = (filled[-1][0], [*filled[-1][1], question])
        return conversation_ids(filled, export.encode, export.markup, export.vocabulary, export.templates), None

    return ids


def plain_prompt(service: Service, turns: Sequence[Turn]) -> Callable:
    """Prompt without turns: each message a line, its images before its text.

    A message with one picture is what training on captions has: the picture and, without words, the wording that asks
    for its caption.
    """
    export = service.export
    vocabulary, encode = export.vocabulary, export.encode

    def ids(codes: Sequence) -> tuple[list[int], None]:
        left, found = iter(codes), []
        for number, (_, parts) in enumerate(turns):
            last = number == len(turns) - 1
            pictures = [next(left) for part in parts if part is None]
            text = "".join(part for part in parts if part).strip()
            if last and len(pictures) == 1:
                found += image_to_text_ids(pictures[0], encode, vocabulary, export.templates, text or 0)
                continue
            for codes_of_one in pictures:
                found += picture_ids(codes_of_one, vocabulary, encode, export.templates)
            if last and not text:
                text = export.templates.image_to_text[0]
            found += map(int, encode(text if last else f"{text}\n"))
        return found, None

    return ids
