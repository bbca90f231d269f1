"""Documents with turns: LLaVA's and FineVision's conversations, and BAGEL's editing rows.

A conversation is `[{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]`;
OpenAI's names, `role` and `content`, are read too. Turns of one role on end are a line each of one turn. Each `<image>`
takes the next picture; pictures that no turn places stand first. An editing row has n + 1 pictures and n instructions,
each a text or a list of alternative texts: instruction k asks for picture k + 1, given everything before. The first
instruction stands before the source picture: its codes are then read in the light of what is asked, and the target
stands equally far behind them whatever its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenization.readers.document import BadRecord, Picture, Text, check_encodable, json_type

PLACE = "<image>"
ROLE_OF = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
Data = Path | str | bytes


def conversation_parts(turns: Any, pictures: Sequence[Data], key: str) -> tuple[Text | Picture, ...]:
    """Parts of a conversation.

    Raises BadRecord `wrong_type`, `unknown_role`, `empty_text`, `picture_count`, `no_question` or `no_answer`.
    """
    if not isinstance(turns, list) or not turns:
        raise BadRecord("wrong_type", f"{key}: expected a list of turns, found {json_type(turns) if turns else 'none'}")
    turns_read = [_turn(turn, f"{key}[{number}]") for number, turn in enumerate(turns)]
    roles = [role for role, _ in turns_read]
    if "assistant" in roles and "user" not in roles[: roles.index("assistant")]:
        raise BadRecord("no_question", f"{key}[{roles.index('assistant')}]: the assistant speaks before the user")
    places = sum(text.count(PLACE) for _, text in turns_read)
    if not places and pictures:
        first = next((number for number, (role, _) in enumerate(turns_read) if role == "user"), 0)
        turns_read[first] = (turns_read[first][0], PLACE * len(pictures) + turns_read[first][1])
    elif places != len(pictures):
        raise BadRecord("picture_count", f"{places} times {PLACE} in {key}, and {len(pictures)} pictures")
    left = iter(pictures)
    parts: list[Text | Picture] = []
    for number, (role, text) in enumerate(turns_read):
        before = len(parts)
        for place, stretch in enumerate(text.split(PLACE)):
            if place:
                parts.append(Picture(next(left), role))
            if stretch.strip():
                # consecutive turns of one role become one turn: a line break keeps their words apart
                goes_on = len(parts) == before and number and roles[number - 1] == role and isinstance(parts[-1], Text)
                parts.append(Text(("\n" * bool(goes_on) + stretch.strip(),), role))
        if len(parts) == before:
            raise BadRecord("empty_text", f"{key}[{number}]: the turn is empty")
    if not any(part.role == "assistant" for part in parts):
        raise BadRecord("no_answer", f"{key}: no turn of the assistant")
    return tuple(parts)


def question_parts(pairs: Any, pictures: Sequence[Data], key: str) -> tuple[Text | Picture, ...]:
    """Parts of FineVision's `[{"user": ..., "assistant": ...}]`."""
    if not isinstance(pairs, list):
        raise BadRecord("wrong_type", f"{key}: expected a list of turns, found {json_type(pairs)}")
    turns = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            raise BadRecord("wrong_type", f"{key}[{number}]: expected an object, found {json_type(pair)}")
        turns += [{"from": role, "value": pair.get(role)} for role in ("user", "assistant")]
    return conversation_parts(turns, pictures, key)


def edit_parts(pictures: Sequence[Data], instructions: Any, key: str) -> tuple[Text | Picture, ...]:
    """Parts of an editing row. Raises BadRecord `picture_count`, `wrong_type` or `empty_text`."""
    if not isinstance(instructions, list):
        raise BadRecord("wrong_type", f"{key}: expected a list, found {json_type(instructions)}")
    if not instructions or len(pictures) != len(instructions) + 1:
        raise BadRecord(
            "picture_count", f"{len(pictures)} pictures and {len(instructions)} instructions; one more is due"
        )
    parts: list[Text | Picture] = []
    for number, (wordings, picture) in enumerate(zip(instructions, pictures[1:], strict=True)):
        texts = wordings if isinstance(wordings, list) else [wordings]
        name = f"{key}[{number}]"
        texts = [_text(text, name).strip() for text in texts]
        if not texts or "" in texts:
            raise BadRecord("empty_text", f"{name}: an instruction is empty")
        parts += [Text(tuple(texts), "user"), *([] if number else [Picture(pictures[0], "user")])]
        parts.append(Picture(picture, "assistant"))
    return tuple(parts)


def _turn(turn: Any, name: str) -> tuple[str, str]:
    """Role and text of a turn."""
    if not isinstance(turn, dict):
        raise BadRecord("wrong_type", f"{name}: expected an object, found {json_type(turn)}")
    said_by, text = (turn.get(keys[0], turn.get(keys[1])) for keys in (("from", "role"), ("value", "content")))
    role = ROLE_OF.get(said_by.lower()) if isinstance(said_by, str) else None
    if role is None:
        raise BadRecord("unknown_role", f"{name}: said by {repr(said_by)[:40]}; known are {', '.join(ROLE_OF)}")
    return role, _text(text, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"{name}: expected text, found {json_type(value)}")
    check_encodable(value, name)
    return value
