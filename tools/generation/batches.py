"""Batched generation with an export: images, texts and interleaved documents, one model call per batch of prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from model.hf.shapes_uni_x import trailing_shape
from model.prompts import TURN_END, size_ids, unconditional_ids
from tools.generation.prompts import Sampling, Scale

if TYPE_CHECKING:
    from PIL import Image

    from tools.export.folder import Export

GREY = (128, 128, 128)  # colour of the part of a preview that is not generated yet


def draw_batch(
    export: Export,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    image_only: Sequence[Sequence[int]] | None = None,
    on_codes: Callable | None = None,
    shapes: Sequence[int | None] = (),
) -> list[Image.Image]:
    """One image for each prompt, decoded from `draw_codes`."""
    import torch

    codes = draw_codes(export, prompts, seeds, sampling, image_only, on_codes, shapes)
    if len({tuple(one.shape) for one in codes}) == 1:
        return export.vq.decode(torch.stack(codes))
    return [export.vq.decode(one[None])[0] for one in codes]


def draw_codes(
    export: Export,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    image_only: Sequence[Sequence[int]] | None = None,
    on_codes: Callable | None = None,
    shapes: Sequence[int | None] = (),
):
    """Codes [rows, columns] of one image for each prompt, in a list.

    Each row of ids ends as `text_to_image_ids` ends them and has a seed of its own. `image_only` are the prompts of edits
    without their instructions; with them the source picture has a scale of guidance of its own. `on_codes` is called
    after each code with the codes so far, [b, n], and the grid of each picture; where a row has fewer than n codes, -1
    stands after them. `shapes`: numbers of shapes, None (or nothing at all) where the model is to choose.
    """
    from model.hf.generation_uni_x import left_pad

    device, pad = export.model.device, export.vocabulary.eos_id
    options: dict = {}
    if image_only is not None:
        ids, mask = left_pad(image_only, pad)
        options = {
            "image_only_ids": ids.to(device),
            "image_only_mask": mask.to(device),
            "image_guidance_scale": schedule(sampling.image_guidance),
        }
    ids, mask = left_pad(prompts, pad)
    ids, mask, chance = ids.to(device), mask.to(device), generators(seeds)
    known = export.templates.grids
    if len(known) > 1:
        chosen = export.model.choose_shapes(
            ids, mask, list(shapes) or None, temperature=sampling.temperature, generator=chance
        )
        grids, options["shapes"] = [known[shape] for shape in chosen], chosen
    else:
        grids, options["num_codes"] = list(known) * len(prompts), known[0][0] * known[0][1]
    found = export.model.generate_images(
        ids,
        mask,
        unconditional(export),
        guidance_scale=schedule(sampling.guidance),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        generator=chance,
        on_codes=on_codes and (lambda codes: on_codes(codes, grids)),
        **options,
    )
    return [codes.view(grid) for codes, grid in zip(found, grids, strict=True)]


def write_batch(
    export: Export, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
) -> list[str]:
    """One text for each prompt: greedy, or sampled with its seed where `text_temperature` is above 0."""
    from model.hf.sampling_uni_x import SeededSamplingLogitsProcessor

    processors = []
    if sampling.text_temperature:
        processors.append(
            SeededSamplingLogitsProcessor(
                generators(seeds),
                stop_ids(export),
                temperature=sampling.text_temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
            )
        )
    found = continue_texts(export, prompts, sampling.max_new_tokens, processors)
    return [export.decode(ids).strip() for ids in found]


def continue_texts(
    export: Export,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    processors: Sequence = (),
    stopping: Sequence = (),
) -> list[list[int]]:
    """New ids of each prompt's text; after its end follows padding, which `export.decode` leaves out.

    `processors` are transformers' logits processors, after those that forbid pictures; `stopping` its criteria.
    """
    import torch
    from transformers import StoppingCriteriaList

    from model.hf.generation_uni_x import left_pad

    eos = export.vocabulary.eos_id
    ids, mask = left_pad(prompts, eos)
    with torch.no_grad():
        found = export.model.generate(
            ids.to(export.model.device),
            attention_mask=mask.to(export.model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop_ids(export),
            pad_token_id=eos,
            logits_processor=[*export.model.text_only(), *processors],
            stopping_criteria=StoppingCriteriaList(stopping),
        )
    return found[:, ids.shape[1] :].tolist()


def stop_ids(export: Export) -> list[int]:
    """Stop ids of a text: the end of the document, and the end of a turn where that is one token."""
    end = list(export.markup(TURN_END))
    return [export.vocabulary.eos_id, *(end if len(end) == 1 else [])]


def document_batch(
    export: Export, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
) -> list[list[str | Image.Image]]:
    """One document for each prompt: its new texts and images in order."""
    rows, columns = export.templates.grid
    found = export.model.generate_documents(
        prompts,
        unconditional(export),
        num_codes=None if export.templates.shapes else rows * columns,
        max_new_tokens=sampling.max_new_tokens,
        max_images=sampling.max_images,
        guidance_scale=schedule(sampling.guidance),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        text_temperature=sampling.text_temperature,
        text_top_k=sampling.top_k,
        text_top_p=sampling.top_p,
        generators=generators(seeds),
        stop_ids=stop_ids(export),
    )
    return [parts_of(export, ids) for ids in found]


def parts_of(export: Export, ids: Sequence[int]) -> list[str | Image.Image]:
    """Texts and complete images of a document's ids, in order, without empty texts."""
    import numpy

    templates, grid = export.templates, export.templates.grid
    sizes = [size_ids(shape, export.encode, templates) for shape in range(len(templates.shapes))]
    parts: list[str | Image.Image] = []
    words: list[int] = []
    codes: list[int] = []
    for token in [*ids, export.vocabulary.vision_end_id]:
        if export.vocabulary.is_code(token):
            codes.append(token - export.vocabulary.image_token_offset)
            continue
        if codes:
            parts += export.vq.decode(numpy.array(codes).reshape(1, *grid))
            codes = []
        if token == export.vocabulary.vision_start_id and (shape := trailing_shape(words, sizes)) is not None:
            words, grid = words[: -len(sizes[shape])], templates.shapes[shape]
        if token in (export.vocabulary.vision_start_id, export.vocabulary.vision_end_id):
            text, words = export.decode(words).strip(), []
            parts += [text] if text else []
        else:
            words.append(token)
    return parts


def partial_picture(export: Export, codes, grid: tuple[int, int]) -> Image.Image:
    """Preview of an image from its codes so far, int64 [n]; the rest is grey."""
    import torch

    rows, columns = grid
    count = len(codes)
    rest = codes[-1:].expand(rows * columns - count)
    picture = export.vq.decode(torch.cat((codes, rest)).view(1, rows, columns))[0]
    side = export.vq.downsample
    for place in range(count, rows * columns):
        top, left = place // columns * side, place % columns * side
        picture.paste(GREY, (left, top, left + side, top + side))
    return picture


def schedule(scale: Scale):
    """A guidance scale of the command line as the model takes it."""
    from model.hf.guidance_uni_x import linear

    return linear(*scale) if isinstance(scale, tuple) else scale


def unconditional(export: Export):
    """Ids [u] of the unconditional prompt."""
    import torch

    ids = unconditional_ids(export.encode, export.vocabulary, export.templates)
    return torch.tensor(ids, device=export.model.device)


def generators(seeds: Sequence[int]) -> list:
    """A random generator for each seed, on the CPU, so that a seed means the same on every device."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


@lru_cache(maxsize=4)
def fingerprint(folder: Path) -> str:
    """Fingerprint of the model: hex digits over the configuration, the prompts, and size and ends of each weight file.

    Weights are not read whole, which would take minutes for a large model.
    """
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", folder / "unix_prompts.json", *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
