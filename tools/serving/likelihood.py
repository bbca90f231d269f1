"""Log probabilities of the tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

POSITIONS = 128  # positions whose logits exist at a time: a vocabulary is large


class Judged(NamedTuple):
    """A token, its log probability after all before it (None for the first), and the likeliest tokens there."""

    token: int
    logprob: float | None
    top: list[tuple[int, float]]


@torch.no_grad()
def judge(model, ids: Sequence[int], first: int, top: int) -> list[Judged]:
    """Score each of `ids[first:]` in one forward pass; `top` of the likeliest tokens at each position.

    The probabilities are the model's own, over its whole vocabulary, as `model(ids).logits` has them.
    """
    device = model.device
    rows = torch.tensor(ids, device=device)
    states = model.model(input_ids=rows[None]).last_hidden_state[0]  # [s, h]
    found = [Judged(ids[0], None, [])] if first == 0 else []
    for begin in range(max(first, 1), len(ids), POSITIONS):
        end = min(begin + POSITIONS, len(ids))
        logits = model.lm_head(states[begin - 1 : end - 1]).float()
        if model.config.text_logits_only:
            offset = model.config.image_token_offset
            logits[:, offset : offset + model.config.codebook_size] = float("-inf")
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, rows[begin:end, None])[:, 0].tolist()
        values, tokens = logprobs.topk(max(1, min(top, logprobs.shape[1])))
        for place in range(end - begin):
            likeliest = list(zip(tokens[place].tolist(), values[place].tolist(), strict=True))[:top]
            found.append(Judged(ids[begin + place], own[place], likeliest))
    return found


def in_words(judged: Sequence[Judged], decode: Callable[[list[int]], str], start: int) -> dict:
    """`logprobs` in the OpenAI API's completions format: lists of equal length. `start` is the position of the
    first."""
    offsets, place, half = [], start, []
    for one in judged:
        offsets.append(place)
        half.append(one.token)
        text = decode(half)
        if "\ufffd" not in text or len(half) > 4:  # a complete character
            place, half = place + len(text), []
    return {
        "tokens": [token_text(one.token, decode) for one in judged],
        "token_logprobs": [one.logprob for one in judged],
        "top_logprobs": [
            None if one.logprob is None else {token_text(token, decode): value for token, value in one.top}
            for one in judged
        ],
        "text_offset": offsets,
    }


def token_text(token: int, decode: Callable[[list[int]], str]) -> str:
    """A token as text, or by its id where it is no text of its own: part of a character, or a control token."""
    text = decode([token])
    return text if text and "\ufffd" not in text else f"token_id:{token}"
