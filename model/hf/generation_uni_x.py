"""Generation of images, of text without image tokens, and of interleaved documents. Imports torch and transformers
only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, StaticCache

from .cache_uni_x import reserved_cache
from .guidance_uni_x import Scale, combine, scales_of, weights_at, weights_of
from .sampling_uni_x import (
    Chance,
    PictureGrammarLogitsProcessor,
    SeededSamplingLogitsProcessor,
    TextOnlyLogitsProcessor,
    check_sampling,
    sample,
    warpers,
)
from .shaped_uni_x import ShapesMixin
from .shapes_uni_x import trailing_shape


class PictureGenerationMixin(ShapesMixin):
    """Generation methods of a Uni-X causal LM beyond transformers' `generate`."""

    if TYPE_CHECKING:  # of the model that this is mixed into
        device: Any

    _prompt_learned = False  # set where peft learns a prompt

    def _check_prompt_is_heard(self) -> None:
        """Raises ValueError for prompt learning of peft: it wraps `forward` and `generate` only, and images would
        ignore it."""
        if self._prompt_learned:
            raise ValueError(
                "pictures would be drawn without the prompt that peft learned: tune with LoRA, or open the model anew"
            )

    def generate(self, *args, free_codes: bool = False, logits_processor: Sequence = (), **kwargs):
        """As in transformers; image tokens are generated only within an image that the model or the prompt opened.

        Whoever samples with this method, trainers of reinforcement learning too, gets text where text is meant. Within
        a picture only codes and `<|vision_end|>` may follow. With `free_codes` every id may follow every other.
        """
        processors = [*(logits_processor or ())]
        if not free_codes and not any(isinstance(one, TextOnlyLogitsProcessor) for one in processors):
            processors.insert(0, PictureGrammarLogitsProcessor(self.config))
        processor = LogitsProcessorList(processors)
        return super().generate(*args, logits_processor=processor, **kwargs)  # type: ignore[misc]  # of the model

    def text_only(self, picture_rows: Sequence[bool] | None = None) -> LogitsProcessorList:
        """Logits processors for `model.generate(ids, logits_processor=model.text_only())`: text, no image tokens.

        Rows of the batch that are True in `picture_rows` may say `<|vision_start|>`, at which the caller stops.
        """
        return LogitsProcessorList([TextOnlyLogitsProcessor(self.config, picture_rows)])

    @torch.no_grad()
    def generate_images(  # noqa: C901
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        unconditional_ids: Tensor | None = None,
        *,
        num_codes: int | None = None,
        shapes: Sequence[int | None] | int | None = None,
        guidance_scale: Scale = 4.0,
        image_guidance_scale: Scale | None = None,
        image_only_ids: Tensor | None = None,
        image_only_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: Chance = None,
        on_codes: Callable[[Tensor], None] | None = None,
        compiled: bool = False,
    ) -> Tensor | list[Tensor]:
        """Generate the codes of one image for each prompt, with classifier-free guidance.

        A model of several shapes (`config.picture_shapes`) takes prompts that end before the size words, which it adds, and
        draws exactly as many codes as the shape of each picture has; shapes may differ within a batch.

        A prompt may hold pictures in any place, as the sources of an edit do. Scales of guidance are numbers, lists of
        one number a code, or functions of (code, codes in all); `guidance_uni_x.py` has the formula.

        Args:
            input_ids: [b, s] prompts that end with `<|vision_start|>`, or before size words; padded on the left.
            attention_mask: [b, s], 0 for padding; all tokens count if not given.
            unconditional_ids: [u] or [1, u], the prompt for "any picture", which also ends with `<|vision_start|>`.
            num_codes: codes of a picture, rows times columns, of a model of one shape.
            shapes: of a model of several, the number of each prompt's shape, or of all; None lets the model choose
                (`choose_shapes`).
            guidance_scale: of the text. Where it is 1.0 throughout, and `image_guidance_scale` too, nothing else than
                the prompts themselves is computed.
            image_guidance_scale: of the source pictures; None gives them the scale of the text.
            image_only_ids, image_only_mask: [b, v], the prompts without their text, needed where both scales differ.
            temperature: divides the logits; 0 takes the likeliest code.
            top_k, top_p: keep the k likeliest codes, and of these the likeliest that make up the probability p;
                0 and 1.0 keep all.
            generator: the source of chance; a list gives each prompt its own, so that its picture does not depend on
                the other prompts of the batch (beyond the rounding of a different batch shape).
            on_codes: called with the codes so far, [b, n], after each code n = 1, 2, ... num_codes.
            compiled: compute each code by one graph of torch.compile over a static cache. The first call of a batch size
                compiles for minutes; prompts whose room (with their codes) falls in the same `ROOM` tokens share a graph.

        Returns:
            Codes [b, num_codes] int64 in 0..codebook_size - 1, row-major; of a model of several shapes a list of
            [rows, columns].

        Raises:
            ValueError: a prompt that does not end with `<|vision_start|>`, or an argument out of its range.
        """
        self._check_prompt_is_heard()
        shaped = bool(self.config.picture_shapes)
        if shaped and num_codes is not None:
            raise ValueError(
                f"num_codes {num_codes}: this model has shapes, which say how many codes: pass shapes, or nothing"
            )
        if not shaped and (num_codes is None or num_codes < 1 or shapes is not None):
            raise ValueError(
                f"num_codes {num_codes}, shapes {shapes}: need num_codes >= 1, and this model has one shape"
            )
        check_sampling(temperature, top_k, top_p)
        if isinstance(generator, Sequence) and len(generator) != len(input_ids):
            raise ValueError(f"{len(generator)} generators for {len(input_ids)} prompts: give one, or one each")
        if shaped:
            self._check_unopened(input_ids, attention_mask)
            chosen = self.choose_shapes(input_ids, attention_mask, shapes, temperature=temperature, generator=generator)
            counts = [rows * columns for rows, columns in (self.config.grids[shape] for shape in chosen)]
        else:
            counts = [num_codes] * len(input_ids)
        weights_by_count = {
            count: weights_of(
                scales_of(guidance_scale, count),
                None if image_guidance_scale is None else scales_of(image_guidance_scale, count),
            )
            for count in set(counts)
        }
        weights = [weights_by_count[count] for count in counts]
        used = [True, *(any(step[part] for of_row in weights for step in of_row) for part in (1, 2))]
        prompts = [(input_ids, attention_mask)]
        if used[1]:
            if image_only_ids is None:
                raise ValueError("guidance_scale and image_guidance_scale differ: pass image_only_ids too")
            prompts.append((image_only_ids, image_only_mask))
        if used[2]:
            if unconditional_ids is None:
                raise ValueError(f"guidance_scale {guidance_scale}: pass unconditional_ids too, or guidance_scale=1.0")
            prompts.append((unconditional_ids.view(1, -1).expand(len(input_ids), -1), None))
        if shaped:
            for ids, mask in prompts[1:]:
                self._check_unopened(ids, mask)
            prompts = [self.with_size_words(ids.to(input_ids.device), mask, chosen) for ids, mask in prompts]
        self._check_prompts(prompts, unconditional_ids if used[2] and not shaped else None)
        ids, mask = _joined([(ids.to(input_ids.device), mask) for ids, mask in prompts])
        padded, warp = not bool(mask.all()), warpers(temperature, top_k, top_p)
        room = ids.shape[1] + max(counts)
        if compiled:
            room += -room % ROOM
            cache, one_graph = StaticCache(config=self.config, max_cache_len=room), compiled_forward(self.model)
            mask = nn.functional.pad(mask, (0, room - mask.shape[1]))  # static shapes in every step
        else:
            cache = reserved_cache(len(self.config.layer_kinds), room)
        offset, size = self.config.image_token_offset, self.config.codebook_size
        codes_only = slice(offset, offset + size)
        codes = input_ids.new_full((len(input_ids), max(counts)), -1)
        places = torch.arange(ids.shape[1], device=ids.device)
        for step in range(max(counts)):
            forward = one_graph if compiled and step else self.model
            # Without padding there is no mask, which allows the fast path of shared layers.
            hidden = forward(
                input_ids=ids,
                attention_mask=mask if padded else None,
                modality=True if step else None,  # after the prompt all tokens are codes
                cache=cache,
                cache_position=places,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits: Any = head_of(self.lm_head, hidden, codes_only).float().chunk(len(prompts))
            at_step = weights_at(step, weights, logits[0].device)
            logits = combine(logits, [weight for weight, kept in zip(at_step, used, strict=True) if kept])
            chance, going = generator, [row for row, count in enumerate(counts) if step < count]
            if len(going) < len(counts):  # finished rows sample nothing more, so that their generators do not advance
                logits = logits[going]
                chance = [generator[row] for row in going] if isinstance(generator, Sequence) else generator
            rows = slice(None) if len(going) == len(counts) else going
            codes[rows, step] = logits.argmax(-1) if temperature == 0 else sample(warp(None, logits), chance)
            if on_codes is not None:
                on_codes(codes[:, : step + 1])
            ids = codes[:, step, None].clamp(min=0) + offset
            if len(prompts) > 1:
                ids = ids.repeat(len(prompts), 1)
            places = places[-1:] + 1
            if compiled:
                mask.index_fill_(1, places, 1)
            elif padded:
                mask = torch.cat((mask, mask.new_ones(len(ids), 1)), dim=1)
        if not shaped:
            return codes
        grids = [self.config.grids[shape] for shape in chosen]
        return [row[: rows * columns].view(rows, columns) for row, (rows, columns) in zip(codes, grids, strict=True)]

    @torch.no_grad()
    def generate_documents(
        self,
        prompts: Sequence[Sequence[int]],
        unconditional_ids: Tensor | None = None,
        *,
        num_codes: int | None = None,
        max_new_tokens: int = 256,
        max_images: int = 4,
        guidance_scale: Scale = 4.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        text_temperature: float = 0.0,
        text_top_k: int = 0,
        text_top_p: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
        stop_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """Generate interleaved documents: text and images in the order that the model chooses.

        Where the model says `<|vision_start|>`, a picture of exactly `num_codes` codes follows, then `<|vision_end|>`,
        then text again. A model of several shapes says size words before it, and as many codes follow as they say. A
        document ends at the end-of-text token, or where its limits are reached.

        Args:
            prompts: ids of each document so far; one that ends with `<|vision_start|>` goes on with a picture.
            unconditional_ids: [u] or [1, u], as for `generate_images`.
            num_codes: codes of a picture, of a model of one shape.
            max_new_tokens: most text tokens that are added to a document.
            max_images: most pictures that are added to a document.
            guidance_scale, temperature, top_k, top_p: of pictures, as for `generate_images`.
            text_temperature, text_top_k, text_top_p: of text; temperature 0 takes the likeliest token.
            stop_ids: tokens that end a document as the end-of-text token does, as the end of a turn.
            generators: one each; what is drawn for a document depends on its own only. None: seeds 0, 1, 2 and so on.

        Returns:
            The new ids of each document.
        """
        self._check_prompt_is_heard()
        config = self.config
        start, end, eos = config.vision_start_token_id, config.vision_end_token_id, config.eos_token_id
        stops = [eos, start, *stop_ids]
        if generators is None:
            generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
        if len(generators) != len(prompts) or not all(len(prompt) for prompt in prompts):
            raise ValueError(f"{len(generators)} generators for {len(prompts)} prompts: give one each, no prompt empty")
        check_sampling(text_temperature, text_top_k, text_top_p)
        rows = [[int(token) for token in prompt] for prompt in prompts]
        text_left, images_left = [max_new_tokens] * len(rows), [max_images] * len(rows)
        going = list(range(len(rows)))
        while going:
            drawing = [row for row in going if rows[row][-1] == start and images_left[row]]
            if drawing:
                shapes, opened = self._opened([rows[row] for row in drawing])
                ids, mask = left_pad(opened, eos)
                codes = self.generate_images(
                    ids.to(self.device),
                    mask.to(self.device),
                    unconditional_ids,
                    num_codes=num_codes,
                    shapes=shapes,
                    guidance_scale=guidance_scale,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    generator=[generators[row] for row in drawing],
                )
                for row, drawn in zip(drawing, codes, strict=True):
                    rows[row] += [*(drawn.flatten() + config.image_token_offset).tolist(), end]
                    images_left[row] -= 1
            going = [row for row in going if text_left[row] and rows[row][-1] != start]
            if not going:
                break
            sampling = SeededSamplingLogitsProcessor(
                [generators[row] for row in going],
                stops,
                temperature=text_temperature,
                top_k=text_top_k,
                top_p=text_top_p,
            )
            ids, mask = left_pad([rows[row] for row in going], eos)
            found = self.generate(
                ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max(text_left[row] for row in going),
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=eos,
                logits_processor=[*self.text_only([images_left[row] > 0 for row in going]), sampling],
            )
            for row, new in zip(going, found[:, ids.shape[1] :].tolist(), strict=True):
                stop = next((place + 1 for place, token in enumerate(new) if token in stops), len(new))
                new = new[: min(stop, text_left[row])]
                rows[row] += new
                text_left[row] -= len(new)
            going = [row for row in going if rows[row][-1] == start]
        return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]

    def _opened(self, rows: list[list[int]]) -> tuple[list[int] | None, list[list[int]]]:
        """Shapes of the images that rows of ids end with, and the rows as `generate_images` takes them."""
        words = self.config.size_words
        if not words:
            return None, rows
        shapes: list[Any] = [trailing_shape(row[:-1], words) for row in rows]
        if None in shapes:
            row = rows[shapes.index(None)]
            raise ValueError(
                f"a prompt of {len(row)} ids ends with <|vision_start|> and no size words before it: see config.picture_shapes"
            )
        return shapes, [row[: -len(words[shape]) - 1] for row, shape in zip(rows, shapes, strict=True)]

    def _check_unopened(self, ids: Tensor, mask: Tensor | None) -> None:
        start = self.config.vision_start_token_id
        if ids.ndim != 2 or not ids.shape[1] or bool((ids[:, -1] == start).any()):
            raise ValueError(
                f"input_ids {list(ids.shape)} must be [b, s] and end before the size words of a picture, without "
                f"<|vision_start|> (id {start}): this model has several shapes"
            )
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError("attention_mask is 0 at the end of a prompt: pad on the left")

    def _check_prompts(self, prompts: Sequence[tuple[Tensor, Tensor | None]], unconditional: Tensor | None) -> None:
        start, batch = self.config.vision_start_token_id, len(prompts[0][0])
        remedy = f"append <|vision_start|> (id {start}) to every prompt and pad on the left"
        if unconditional is not None:
            one_prompt = unconditional.numel() == unconditional.shape[-1]
            if not one_prompt or unconditional.flatten()[-1] != start:
                raise ValueError(f"unconditional_ids {unconditional.tolist()} must be one prompt: {remedy}")
        for ids, mask in prompts:
            if ids.ndim != 2 or len(ids) != batch or not ids.shape[1] or bool((ids[:, -1] != start).any()):
                raise ValueError(f"input_ids {list(ids.shape)} must be [{batch}, s] and end with id {start}: {remedy}")
            if mask is not None and not bool(mask[:, -1].all()):
                raise ValueError(f"attention_mask is 0 at the end of a prompt: {remedy}")


ROOM = 64
"""A static cache has room for a multiple of so many tokens: each other room is another graph."""


GRAPHS = 64
"""So many rooms and batch sizes a process may compile; torch's own limit of 8 would end the ninth in an error."""


def compiled_forward(model: nn.Module) -> Callable:
    """Forward pass of `model` compiled as one graph (fullgraph), cached by torch."""
    options = own_vectors() or None
    one_graph = torch.compile(model.forward, fullgraph=True, dynamic=False, options=options)

    def forward(**inputs):
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return one_graph(**inputs)

    return forward


def own_vectors() -> dict[str, Any]:
    """Options of torch.compile that name the length of this x86 CPU's vectors, in bits; {} on other CPUs.

    torch 2.13 keeps compiled graphs on disk by name, and these are part of the name. Without it, a CPU with AVX2 takes from a
    folder that several machines share what one with AVX-512 has left there, and computes half of the numbers, in silence.
    """
    bits = {"AVX2": 256, "AVX512": 512}.get(torch.backends.cpu.get_cpu_capability())
    return {"cpp.simdlen": bits} if bits else {}


def head_of(head: Any, hidden: Tensor, rows: slice) -> Tensor:
    """Logits [n, rows] of hidden states [n, hidden] for some rows of the LM head.

    A head that is just a matrix computes these rows only. All others (LoRA, quantized, offloaded or sharded ones, or
    with hooks) are called, and what they give is cut.
    """
    weight: Any = getattr(head, "weight", None)  # some quantizers keep it under other names
    plain = type(head) is nn.Linear and isinstance(weight, Tensor) and type(weight.data) is Tensor
    plain = plain and weight.is_floating_point() and "forward" not in vars(head)
    hooked = head._forward_hooks or head._forward_pre_hooks
    if plain and not hooked and head.weight.device == hidden.device:
        return nn.functional.linear(hidden, head.weight[rows])
    return head(hidden)[..., rows]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids of any lengths -> ids and attention mask, each [b, longest], padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _joined(prompts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Batches of prompts [b, s_i] and their masks -> one batch of all and its mask, [sum of b, longest s_i]."""
    width = max(ids.shape[1] for ids, _ in prompts)

    def pad(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x, (width - x.shape[1], 0), value=value)

    ids = torch.cat([pad(ids, int(ids[0, -1])) for ids, _ in prompts])
    masks = [torch.ones_like(ids) if mask is None else mask.to(ids.device).long() for ids, mask in prompts]
    return ids, torch.cat([pad(mask, 0) for mask in masks])
