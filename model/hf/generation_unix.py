"""Picture generation, and text generation without picture ids. Imports torch and transformers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class TextOnlyLogitsProcessor(LogitsProcessor):
    """Forbids picture codes and both vision markers, so that `generate` continues in text."""

    def __init__(self, image_token_offset: int, marker_ids: Sequence[int]) -> None:
        self.image_token_offset = image_token_offset
        self.marker_ids = list(marker_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, vocab] -> the same with -inf at ids that are not text."""
        scores = scores.clone()
        scores[:, self.image_token_offset :] = -torch.inf
        scores[:, self.marker_ids] = -torch.inf
        return scores


class PictureGenerationMixin:
    """What a Uni-X causal LM can do beyond transformers' `generate`."""

    def text_only(self) -> LogitsProcessorList:
        """For `model.generate(ids, logits_processor=model.text_only())`: text, never picture ids."""
        markers = (self.config.vision_start_token_id, self.config.vision_end_token_id)
        return LogitsProcessorList([TextOnlyLogitsProcessor(self.config.image_token_offset, markers)])

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        unconditional_ids: Tensor | None = None,
        *,
        num_codes: int,
        guidance_scale: float = 4.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Sample the codes of one picture a prompt.

        Args:
            input_ids: [b, s] prompts that end with `<|vision_start|>`, padded on the left.
            attention_mask: [b, s], 0 for padding; all tokens count if not given.
            unconditional_ids: [u] or [1, u], the prompt for "any picture", which also ends with `<|vision_start|>`.
            num_codes: codes of a picture, rows times columns.
            guidance_scale: s of classifier-free guidance (Ho and Salimans, arXiv 2207.12598, as Uni-X uses it):
                logits = unconditional + s * (conditional - unconditional). 1.0 leaves out the unconditional half.
            temperature: divides the logits; 0 takes the likeliest code.
            top_k, top_p: keep the k likeliest codes, and of these the likeliest that make up the probability p;
                0 and 1.0 keep all.
            generator: the source of chance; a list gives each prompt its own, so that its picture does not depend on
                the other prompts of the batch (beyond the rounding of a different batch shape).

        Returns:
            Codes [b, num_codes] int64 in 0..codebook_size - 1, row-major.

        Raises:
            ValueError: a prompt that does not end with `<|vision_start|>`, or an argument out of its range.
        """
        batch = input_ids.shape[0]
        guided = guidance_scale != 1.0
        if guided and unconditional_ids is None:
            raise ValueError(f"guidance_scale {guidance_scale}: pass unconditional_ids too, or guidance_scale=1.0")
        self._check_picture_request(input_ids, attention_mask, unconditional_ids if guided else None, generator)
        if num_codes < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"num_codes {num_codes}, temperature {temperature}, top_k {top_k}, top_p {top_p}: "
                "need num_codes >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        ids = input_ids
        if guided:
            ids, mask = _append_unconditional(ids, mask, unconditional_ids.to(ids.device).view(1, -1))
        warpers = _warpers(temperature, top_k, top_p)
        offset, size = self.config.image_token_offset, self.config.codebook_size
        code_rows = self.lm_head.weight[offset : offset + size]  # a code is all that may follow: skip the text rows
        cache = DynamicCache(config=self.config)
        codes = []
        for _ in range(num_codes):
            # Without padding no mask is given, so that the fast path of shared layers is open.
            hidden = self.model(
                input_ids=ids,
                attention_mask=None if bool(mask.all()) else mask,
                cache=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits = torch.nn.functional.linear(hidden, code_rows).float()
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            if temperature == 0:
                code = logits.argmax(-1)
            else:
                code = _sample(warpers(None, logits), generator)
            codes.append(code)
            ids = (code + offset).repeat(2 if guided else 1)[:, None]
            mask = torch.cat((mask, mask.new_ones(len(ids), 1)), dim=1)
        return torch.stack(codes, dim=1).view(batch, num_codes)

    def _check_picture_request(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        unconditional_ids: Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> None:
        start = self.config.vision_start_token_id
        remedy = f"append <|vision_start|> (id {start}) to every prompt and pad on the left"
        if input_ids.ndim != 2 or not input_ids.shape[1] or bool((input_ids[:, -1] != start).any()):
            raise ValueError(f"input_ids {list(input_ids.shape)} must be [b, s] and end with id {start}: {remedy}")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError(f"attention_mask is 0 at the end of a prompt: {remedy}")
        if unconditional_ids is not None:
            one_prompt = unconditional_ids.numel() == unconditional_ids.shape[-1]
            if not one_prompt or unconditional_ids.flatten()[-1] != start:
                raise ValueError(f"unconditional_ids {unconditional_ids.tolist()} must be one prompt: {remedy}")
        if isinstance(generator, Sequence) and len(generator) != len(input_ids):
            raise ValueError(f"{len(generator)} generators for {len(input_ids)} prompts: give one, or one each")


def _append_unconditional(ids: Tensor, mask: Tensor, unconditional: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [b, s] and their mask -> [2b, max(s, u)]: the prompts, then b times the unconditional one."""
    batch, start = len(ids), unconditional[:, -1:]
    length = max(ids.shape[1], unconditional.shape[1])

    def pad(x: Tensor, value) -> Tensor:
        return torch.cat((value.expand(len(x), length - x.shape[1]), x), dim=1)

    ids = torch.cat((pad(ids, start), pad(unconditional, start).expand(batch, -1)))
    zero = mask.new_zeros(1, 1)
    seen = pad(torch.ones_like(unconditional, dtype=mask.dtype), zero).expand(batch, -1)
    return ids, torch.cat((pad(mask, zero), seen))


def _warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _sample(logits: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Logits [b, codes] -> one index a row [b], drawn by its probability.

    The index of the smallest exponential variate divided by its probability has just that distribution. The variates
    are drawn for all codes, on the generator's own device, so a seed means the same picture on any device.
    """
    rows, width = logits.shape
    if isinstance(generator, Sequence):
        drawn = [torch.empty(1, width, device=one.device).exponential_(generator=one) for one in generator]
        variates = torch.cat(drawn).to(logits.device)
    else:
        device = logits.device if generator is None else generator.device
        variates = torch.empty(rows, width, device=device).exponential_(generator=generator).to(logits.device)
    return (logits.softmax(-1) / variates).argmax(-1)
