"""Shapes of generated images: chosen by the model or given, and their size words. Imports torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache_uni_x import reserved_cache
from .sampling_uni_x import Chance, exponential
from .shapes_uni_x import next_ids


class ShapesMixin:
    """Choice of shapes, for a Uni-X causal LM of several. Unused without `config.picture_shapes`."""

    if TYPE_CHECKING:  # of the model that this is mixed into
        config: Any
        model: Any
        lm_head: Any

    @torch.no_grad()
    def choose_shapes(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        shapes: Sequence[int | None] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: Chance = None,
    ) -> list[int]:
        """Shape number for each prompt: that of `shapes`, or else sampled from the model.

        Only ids that continue the size words of some shape may follow, so that a word of the set always comes out. Nothing is
        drawn for a row whose shape is given, nor where one id alone may follow. No guidance plays a part.

        Args:
            input_ids, attention_mask: [b, s], prompts that end before the size words, padded on the left.
            shapes: a number for each prompt or for all, None where the model is to choose.
            temperature: divides the logits; 0 takes the likeliest.
            generator: as for `generate_images`.

        Returns:
            Numbers of shapes, positions in `config.picture_shapes`.
        """
        words, start = self.config.size_words, self.config.vision_start_token_id
        found = shapes_of(shapes, len(input_ids), len(words))
        chosen: list[list[int]] = [[] for _ in found]
        ids: Tensor = input_ids
        mask: Any = attention_mask
        cache = None
        while None in found:
            if cache is None:
                cache = reserved_cache(len(self.config.layer_kinds), ids.shape[1] + max(map(len, words)) + 1)
                mask = torch.ones_like(ids) if mask is None else mask.to(ids.device).long()
                padded = not bool(mask.all())
            hidden = self.model(
                input_ids=ids, attention_mask=mask if padded else None, cache=cache, use_cache=True
            ).last_hidden_state[:, -1:]
            logits = self.lm_head(hidden)[:, -1].float()
            following = []
            for row, shape in enumerate(found):
                if shape is not None:
                    following.append(start)  # the row is finished: its input is ignored
                    continue
                allowed = sorted(next_ids(words, chosen[row], start))
                own = generator[row] if isinstance(generator, Sequence) else generator
                chosen[row].append(allowed[_drawn(logits[row, allowed], temperature, own)])
                following.append(chosen[row][-1])
                whole = chosen[row][:-1] if chosen[row][-1] == start else chosen[row]
                left = [number for number, word in enumerate(words) if word[: len(whole)] == whole]
                if len(left) == 1 or chosen[row][-1] == start:
                    found[row] = left[0] if len(left) == 1 else words.index(whole)
            ids = torch.tensor(following, device=ids.device)[:, None]
            mask = torch.cat((mask, mask.new_ones(len(ids), 1)), dim=1)
        return [shape for shape in found if shape is not None]  # all of them

    def with_size_words(
        self, input_ids: Tensor, attention_mask: Tensor | None, shapes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Append to prompts [b, s], or to one for all [1, s], the size words of each row's shape and
        `<|vision_start|>`.

        Returns ids and mask, [b, longest], padded on the left.
        """
        words, start = self.config.size_words, self.config.vision_start_token_id
        rows = input_ids.expand(len(shapes), -1)
        masks = (
            torch.ones_like(rows) if attention_mask is None else attention_mask.to(rows.device).expand(len(shapes), -1)
        )
        longest = max(len(words[shape]) for shape in shapes)
        added = torch.tensor([[start] * (longest - len(words[shape])) + words[shape] + [start] for shape in shapes])
        kept = torch.tensor([[0] * (longest - len(words[shape])) + [1] * (len(words[shape]) + 1) for shape in shapes])
        ids = torch.cat((rows, added.to(rows.device)), dim=1)
        mask = torch.cat((masks.long(), kept.to(rows.device)), dim=1)
        order = mask.argsort(dim=1, stable=True)  # padding of shorter size words moves to the left
        return ids.gather(1, order), mask.gather(1, order)


def shapes_of(shapes: Sequence[int | None] | int | None, count: int, known: int) -> list[int | None]:
    """One shape number for each prompt. Raises ValueError for another count, and for an unknown number."""
    found = list(shapes) if isinstance(shapes, Sequence) else [shapes] * count
    if len(found) != count:
        raise ValueError(f"{len(found)} shapes for {count} prompts: give one each, one for all, or none")
    wrong = [shape for shape in found if shape is not None and not (type(shape) is int and 0 <= shape < known)]
    if wrong:
        raise ValueError(f"shape {wrong[0]!r}: give a number of 0 to {known - 1}, a position in config.picture_shapes")
    return found


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    """Index sampled from a few logits [n]; `generator` is not used where there is no choice."""
    if len(logits) == 1 or temperature == 0:
        return int(logits.argmax())
    chance = exponential(logits.shape, generator, logits.device).to(logits.device)
    return int(((logits / temperature).softmax(-1) / chance).argmax())
