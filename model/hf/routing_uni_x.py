"""Token routing to branches, and documents of packed rows. Imports torch and transformers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from .cache_uni_x import record_of

TEXT, VISION = 0, 1  # the branches, in the order in which they are computed


class Routing:
    """Routing of tokens to the text or vision branch, computed once per forward pass for all layers with two branches.

    A branch without tokens is not computed, so that a text-only input costs what the base LLM costs. While
    torch.compile or torch.export trace the model nothing may depend on what the ids are: then both branches compute all
    tokens, and each token takes the result of its own.
    """

    def __init__(self, visual: Tensor | None, all_visual: bool | None = None) -> None:
        """`visual` [b, s]: True for tokens of the vision branch; None where one branch computes all tokens.

        `all_visual` says of which kind all tokens are, where the caller knows: then no value is read.
        """
        self.branches, self.visual = [TEXT], None
        if visual is None:
            return
        if all_visual is not None:
            self.branches = [VISION if all_visual else TEXT]
            return
        visual = visual.flatten()
        if torch.compiler.is_compiling():
            self.branches, self.visual = [TEXT, VISION], visual[:, None]
            return
        num_visual = int(visual.sum())
        self.counts = [visual.numel() - num_visual, num_visual]
        self.branches = [branch for branch in (TEXT, VISION) if self.counts[branch]]
        if len(self.branches) == 2:
            self.order = torch.argsort(visual.byte(), stable=True)  # text first, each in document order
            self.inverse = torch.argsort(self.order)

    def split(self, x: Tensor) -> list[Tensor]:
        """Split [b * s, ...] into one tensor per branch."""
        if self.visual is not None:
            return [x, x]
        if len(self.branches) == 1:
            return [x]
        return list(x[self.order.to(x.device)].split(self.counts))

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`, on the device of the first part: a device map may put branches on different ones."""
        if len(parts) == 1:
            return parts[0]
        text, vision = parts[0], parts[1].to(parts[0].device)
        if self.visual is not None:
            return torch.where(self.visual.view(-1, *[1] * (text.ndim - 1)).to(text.device), vision, text)
        return torch.cat((text, vision))[self.inverse.to(text.device)]


class Tokens(NamedTuple):
    """Of each new token [b, s]: `visual`, its position in its document, and the document's number."""

    visual: Tensor
    positions: Tensor
    documents: Tensor | None  # None for one document per row


class Keys(NamedTuple):
    """Of all keys: modality (1 text, 2 vision, 0 an unused slot) and document, [b, total]."""

    modality: Tensor
    documents: Tensor | None


def keys_after(cache: Cache | None, total: Any) -> Any:
    """Number of keys that attention sees once the cache holds `total` tokens: all slots of a static cache."""
    first = cache.layers[0] if cache is not None and cache.layers else None
    return first.max_cache_len if isinstance(first, StaticLayer) else total


def visual_tokens(
    model: Any,
    input_ids: Tensor | None,
    modality: Tensor | bool | None,
    cache: Cache | None,
    shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Which new tokens the vision branch computes: bool [b, s], from the ids or from the `modality` of the caller.

    `model` is a UniXModel, `shape` (b, s). For a cache that another model filled, its tokens are recorded first. Raises
    ValueError where the modality cannot be known.
    """
    batch, length = shape
    if isinstance(modality, bool):
        modality = torch.full(shape, modality, device=device)
    foreign = 0
    if cache is not None and not record_of(cache).is_initialized and not torch.compiler.is_compiling():
        foreign = int(cache.get_seq_length())
    if modality is not None and modality.shape not in ((batch, length), (batch, foreign + length)):
        raise ValueError(
            f"modality has shape {list(modality.shape)}: give [{batch}, {length}], or with the tokens of a cache "
            f"that others filled [{batch}, {foreign + length}]: True for tokens of pictures"
        )
    if foreign:
        if model.within and (modality is None or modality.shape[1] == length):
            raise ValueError(
                f"past_key_values holds {foreign} tokens whose modality is not known: pass a cache that this model "
                f"filled, or modality [{batch}, {foreign + length}], True for tokens of pictures; prefix tuning of peft has "
                "neither: tune with LoRA"
            )
        begun = torch.zeros(batch, foreign, dtype=torch.bool, device=device)
        if modality is not None and modality.shape[1] > length:
            begun = modality[:, :foreign].bool().to(device)
        places = torch.arange(foreign, device=device)
        locate(begun, None, None, None, cache, places, model.within)
    if modality is not None:
        return modality[:, -length:].bool().to(device)
    if input_ids is not None:
        return model.config.is_visual(input_ids)
    if model.routes:
        raise ValueError(
            f"inputs_embeds do not say which tokens are of pictures: pass modality, [{batch}, {length}] booleans, "
            "too, or input_ids; prompt tuning of peft has neither: tune with LoRA"
        )
    return torch.zeros(shape, dtype=torch.bool, device=device)


def locate(
    visual: Tensor,
    real: Tensor | None,
    starts: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    cache_position: Tensor,
    keep_record: bool,
) -> tuple[Tokens, Keys | None]:
    """Positions and documents of new tokens, and the record of the cached ones.

    `visual` [b, s]; `real` [b, s], False for padding, None if there is none; `starts` [b, s], True where the caller
    says that a document starts; `position_ids` [b or 1, s] of the caller, whose next document starts where they do not
    grow; `cache_position` [s]. Without `keep_record`, keys are returned only where a row holds several documents.
    """
    batch, length = visual.shape
    if position_ids is not None and position_ids.shape not in ((batch, length), (1, length)):
        raise ValueError(
            f"position_ids has shape {list(position_ids.shape)}: give the shape of input_ids, {[batch, length]}, or one row"
        )
    tracing = torch.compiler.is_compiling()
    record = record_of(cache) if cache is not None else None
    if record is not None and real is None and starts is None and position_ids is None and not tracing:
        found = _next_of_plain(record, visual, cache_position)
        if found is not None:
            return found, Keys(record.keys[:, 0, :, 0], None)
    before, number = _last(record, cache_position, batch)
    if position_ids is not None:
        position_ids = position_ids.to(visual.device).expand(batch, -1)
        restarts = _restarts(position_ids, real, before)
        starts = restarts if starts is None else starts | restarts
    several = starts is not None and (tracing or bool(starts.any()))
    counts = torch.arange(1, length + 1, device=visual.device)[None] if real is None else real.long().cumsum(-1)
    positions, documents = position_ids, number.expand(batch, length)
    if positions is None:
        positions = (before + counts).expand(batch, length)
    if starts is not None and several:
        documents = number + starts.long().cumsum(-1)
        if position_ids is None:
            first = (
                torch.where(starts, counts, 0).cummax(-1).values
            )  # number of tokens before and at the document's first one
            positions = torch.where(first > 0, counts - first, positions)
    if real is not None or position_ids is not None:
        positions = positions.clamp(min=0)
    if record is None:
        keys = Keys(visual.int() + 1, documents if several else None)
        return Tokens(visual, positions, keys.documents), keys if keep_record or several else None
    if real is not None:  # padding keeps the last position before it, so that later tokens continue from there
        places = torch.where(real, torch.arange(1, length + 1, device=real.device), 0).cummax(-1).values
        kept = torch.cat((before.expand(batch, 1), positions), dim=1).gather(1, places)
    else:
        kept = positions
    documents = documents.int()
    known, _ = record.update(
        torch.stack((visual.int() + 1, documents), dim=-1)[:, None],
        torch.stack((documents, kept.int()), dim=-1)[:, None],
        {"cache_position": cache_position},
    )
    several = tracing or several or bool(number.any())  # document numbers of a row only grow
    keys = Keys(known[:, 0, :, 0], known[:, 0, :, 1] if several else None)
    return Tokens(visual, positions, documents if several else None), keys


def _next_of_plain(record, visual: Tensor, cache_position: Tensor) -> Tokens | None:
    """Fast path of `locate` for rows of one document from the first token on, without padding; None for others.

    Their positions are the places in the cache. How many tokens of a record are such is known to it, not to its tensors,
    so that no value has to be read.
    """
    if isinstance(record, StaticLayer) or record.plain != record.get_seq_length():
        return None
    pad = torch.nn.functional.pad  # document 0
    places = pad(cache_position.int()[None, None, :, None], (1, 0)).expand(len(visual), -1, -1, -1)
    record.update(pad((visual.int() + 1)[:, None, :, None], (0, 1)), places, {"cache_position": cache_position})
    record.plain += visual.shape[1]
    return Tokens(visual, cache_position[None], None)


def _last(record, cache_position: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Position and document [b or 1, 1] of the token before the new ones; -1 and 0 where there is none."""
    none = cache_position.new_full((1, 1), -1), cache_position.new_zeros((1, 1))
    if record is None or not record.is_initialized or record.keys.numel() == 0:
        return none
    if not isinstance(record, StaticLayer):
        last = record.values[:, 0, -1:].to(cache_position.device)
        return last[..., 1], last[..., 0]
    place = (cache_position[:1] - 1).clamp(min=0)
    last = record.values[:, 0].to(place.device).index_select(1, place).long()  # [b, 1, 2]
    empty = cache_position[0] == 0
    return torch.where(empty, none[0], last[..., 1]), torch.where(empty, none[1], last[..., 0])


def _restarts(position_ids: Tensor, real: Tensor | None, before: Tensor) -> Tensor:
    """[b, s]: True at real tokens whose position is not above that of the real token before them."""
    batch, length = position_ids.shape
    line = torch.cat((before.expand(batch, 1), position_ids), dim=1)
    places = torch.arange(1, length + 1, device=line.device).expand(batch, -1)
    if real is not None:
        places = torch.where(real, places, 0)
    previous = torch.cat((places.new_zeros(batch, 1), places[:, :-1]), dim=1).cummax(-1).values
    restarts = position_ids <= line.gather(1, previous)
    return restarts if real is None else restarts & real


def same_ends(*ends: Tensor | None) -> Tensor | None:
    """The document ends that the caller gave under one of several names. Raises ValueError if two differ."""
    given = [one for one in ends if one is not None]
    for other in given[1:]:
        same = other is given[0] or torch.compiler.is_compiling() or torch.equal(other.cpu(), given[0].cpu())
        if not same:
            raise ValueError("cu_seq_lens_q and cu_seq_lens_k differ: documents of packed rows see themselves alone")
    return given[0] if given else None


def starts_of(
    shape: tuple[int, int], seq_idx: Tensor | None, cu_seq_lens: Tensor | None, attention_mask: Tensor | None
) -> Tensor | None:
    """Starts of documents in packed rows, bool [b, s], or None if the caller does not give them. Raises ValueError.

    `seq_idx` [b, s]: number of each token's document. `cu_seq_lens` [documents + 1]: where each document of the one row
    of the batch starts, and the row's length. `attention_mask` [b, s]: some collators write the number of the document
    where others write 1.
    """
    batch, length = shape
    starts = None
    if cu_seq_lens is not None:
        if batch != 1 or (not torch.compiler.is_compiling() and int(cu_seq_lens[-1]) != length):
            raise ValueError(
                f"cu_seq_lens ends at {int(cu_seq_lens[-1])} for input_ids {[batch, length]}: give one row, [1, s], and "
                "the starts of its documents with s at the end"
            )
        places = torch.arange(length, device=cu_seq_lens.device)
        starts = torch.isin(places, cu_seq_lens)[None] & (places > 0)
    for numbers in (seq_idx, attention_mask):
        if numbers is None:
            continue
        if numbers.shape != (batch, length):
            if numbers is attention_mask:
                continue
            raise ValueError(f"seq_idx has shape {list(numbers.shape)}: give the shape of input_ids, {[batch, length]}")
        changed = torch.zeros(shape, dtype=torch.bool, device=numbers.device)
        changed[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        if numbers is attention_mask:  # a change from 0 to 1 is the end of padding
            changed[:, 1:] &= (numbers[:, 1:] != 0) & (numbers[:, :-1] != 0)
        starts = changed if starts is None else starts.to(changed.device) | changed
    return starts
