"""Sampling: allowed tokens, temperature, top-k and top-p, and a random generator for each row. Imports torch and
transformers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .shapes_uni_x import trailing_shape

Chance = torch.Generator | Sequence[torch.Generator] | None
COLDEST = 1e-20
"""Temperatures below it are taken as this one. The likeliest token has all of the probability long before, and logits divided
by less leave the range of float32: the probabilities would be NaN, and the first token of the vocabulary drawn."""


class TextOnlyLogitsProcessor(LogitsProcessor):
    """Masks image tokens and both vision markers, so that `generate` continues in text.

    Of a model of several shapes, a row that may open a picture does so after size words only.
    """

    def __init__(self, config, picture_rows: Sequence[bool] | None = None) -> None:
        """`config` is a UniXConfig; rows that are True in `picture_rows` may open an image, but nothing more of it."""
        self.image_token_offset = config.image_token_offset
        self.start, self.end = config.vision_start_token_id, config.vision_end_token_id
        self.picture_rows = picture_rows
        self.words = config.size_words

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, vocab] -> the same with -inf at ids that may not follow."""
        scores = scores.clone()
        scores[:, self.image_token_offset :] = -torch.inf
        scores[:, self.end] = -torch.inf
        closed = torch.tensor([not may for may in self.picture_rows or [False] * len(scores)], device=scores.device)
        if self.words:
            closed |= ~said_size(input_ids, self.words)
        scores[closed, self.start] = -torch.inf
        return scores


class PictureGrammarLogitsProcessor(LogitsProcessor):
    """Allows image tokens and `<|vision_end|>` only within an image, which `<|vision_start|>` opens, and nothing else
    there.

    Of a model of several shapes, `<|vision_start|>` follows size words only, and then exactly as many codes as they say.
    """

    def __init__(self, config) -> None:
        """`config` is a UniXConfig."""
        self.words, self.grids = config.size_words, config.grids
        self.codes = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
        self.start, self.end = config.vision_start_token_id, config.vision_end_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, vocab] -> the same with -inf at ids that may not follow."""
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        opened, closed = (
            (places * (input_ids == token)).amax(-1) if len(places) else 0 for token in (self.start, self.end)
        )
        within = torch.as_tensor(opened > closed, device=scores.device).expand(len(scores))[:, None]
        ids = torch.arange(scores.shape[-1], device=scores.device)
        inside = (ids >= self.codes.start) & (ids < self.codes.stop) | (ids == self.end)
        outside = (ids < self.codes.start) & (ids != self.end)
        if self.words:
            left = torch.tensor(
                [self._codes_left(row, at) for row, at in zip(input_ids, _numbers(opened, len(scores)))]
            )
            left = left.to(scores.device)[:, None]
            inside = torch.where(left > 0, inside & (ids != self.end), ids == self.end)
            outside = outside & ((ids != self.start) | said_size(input_ids, self.words)[:, None])
        return scores.masked_fill(~torch.where(within, inside, outside), -torch.inf)

    def _codes_left(self, row: Tensor, opened: int) -> int:
        """Codes that are missing in the image that the `opened`-th id of a row [s] opened; 0 for none."""
        if not opened:
            return 0
        longest = max(map(len, self.words))
        shape = trailing_shape(row[max(0, opened - 1 - longest) : opened - 1].tolist(), self.words)
        if shape is None:
            raise ValueError(
                f"<|vision_start|> at place {opened - 1} does not follow the size words of a shape: see picture_shapes"
            )
        return max(0, self.grids[shape][0] * self.grids[shape][1] - (len(row) - opened))


def said_size(input_ids: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """bool [b]: whether each row of ids [b, s] ends with size words."""
    found = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for word in words:
        if len(word) <= input_ids.shape[1]:
            found |= (input_ids[:, -len(word) :] == torch.tensor(list(word), device=input_ids.device)).all(-1)
    return found


def _numbers(places: Tensor | int, count: int) -> list[int]:
    return [places] * count if isinstance(places, int) else places.tolist()


class SeededSamplingLogitsProcessor(LogitsProcessor):
    """Seeded sampling inside `generate(do_sample=False)`: the sampled token gets the largest score.

    Put it last. Each row draws from its own generator, and no longer once it has ended, so that what is drawn for a
    row, and the state of its generator after it, do not depend on the other rows.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        stop_ids: Sequence[int],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.generators = list(generators)
        self.stop_ids = set(stop_ids)
        self.warp = warpers(temperature, top_k, top_p)
        self.greedy = temperature == 0
        self.ended: list[bool] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, vocab] -> scores whose largest one is at the sampled token."""
        if self.ended is None:  # the last token is still the prompt's
            if len(self.generators) != len(input_ids):
                raise ValueError(f"{len(self.generators)} generators for {len(input_ids)} prompts: give one each")
            self.ended = [False] * len(input_ids)
        else:
            last = input_ids[:, -1].tolist()
            self.ended = [was or token in self.stop_ids for was, token in zip(self.ended, last, strict=True)]
        if self.greedy:
            return scores
        drawn = self.warp(None, scores.float()).log_softmax(-1)
        for row, generator in enumerate(self.generators):
            if not self.ended[row]:
                drawn[row] -= exponential(scores.shape[-1:], generator).log().to(drawn.device)
        return drawn


def warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """Logits warpers: temperature (0 is left to the caller), then top-k, then top-p; 0 and 1.0 keep all."""
    found = LogitsProcessorList()
    if temperature not in (0, 1):
        found.append(TemperatureLogitsWarper(max(float(temperature), COLDEST)))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        found.append(TopPLogitsWarper(top_p))
    return found


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError for a setting out of its range."""
    if not 0 <= temperature < float("inf") or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}: "
            "need temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
        )


def exponential(shape: Sequence[int], generator: torch.Generator | None, device: torch.device | None = None) -> Tensor:
    """Exponential variates, drawn on the generator's own device, so that a seed means the same on any device."""
    device = device if generator is None else generator.device
    return torch.empty(*shape, device=device).exponential_(generator=generator)


def sample(logits: Tensor, chance: Chance) -> Tensor:
    """Sample one index for each row [b] from logits [b, codes].

    The index of the smallest exponential variate divided by its probability has just that distribution. The variates
    are drawn for all codes, whatever top-k and top-p leave of them.
    """
    if isinstance(chance, Sequence):
        drawn = torch.stack([exponential(logits.shape[1:], generator) for generator in chance])
    else:
        drawn = exponential(logits.shape, chance, logits.device)
    return (logits.softmax(-1) / drawn.to(logits.device)).argmax(-1)
