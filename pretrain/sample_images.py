"""Sample images during training: the current weights in the Hugging Face model, with the configured prompts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch

from model.config import ModelConfig
from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM
from model.prompts import Encode, PromptTemplates, text_to_image_ids, unconditional_ids
from model.weight_names import to_hugging_face


def hugging_face_model(
    config: ModelConfig, weights, dtype: torch.dtype | None = None, shapes: Sequence[dict] = ()
) -> UniXForCausalLM:
    """Hugging Face model, ready to generate, from (training name, tensor) pairs.

    shapes: what its configuration says of the shapes of pictures; none of a model of squares.
    """
    state = dict(to_hugging_face(config, weights))
    with torch.device("meta"):
        model = UniXForCausalLM(UniXConfig(**config.to_dict(), picture_shapes=list(shapes)))
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise ValueError(f"weights and model do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            raise ValueError(f"buffer {name} has no value: the model must compute it when it is used")
    return model.to(dtype).eval() if dtype else model.eval()


def draw_samples(
    model: UniXForCausalLM,
    encode: Encode,
    templates: PromptTemplates,
    vq,
    captions,
    guidance: float,
    temperature: float,
    seed: int,
    on_codes: Callable[[torch.Tensor], None] | None = None,
) -> list:
    """Generate one PIL image for each caption on the model's device; the same seed and weights give the same images
    there.

    A model of several shapes draws the first in the first, the next in the next, and so on.
    on_codes: called after each code.
    """
    vocabulary = ModelConfig.from_dict(model.config.to_dict()).vocabulary
    pictures = []
    for number, caption in enumerate(captions):
        ids = torch.tensor([text_to_image_ids(caption, encode, vocabulary, templates)], device=model.device)
        shape = number % len(templates.grids)
        rows, columns = templates.grids[shape]
        which = {"shapes": [shape]} if templates.shapes else {"num_codes": rows * columns}
        codes = model.generate_images(
            ids,
            unconditional_ids=torch.tensor([unconditional_ids(encode, vocabulary, templates)]),
            **which,
            guidance_scale=guidance,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed + number),
            on_codes=on_codes,
        )
        pictures += vq.decode(codes[0].view(1, rows, columns).cpu().numpy())
    return pictures


def sheet(pictures: list, captions) -> bytes:
    """Labelled grid of the samples, as PNG."""
    from tokenization.contact_sheet import contact_sheet

    content = io.BytesIO()
    contact_sheet(pictures, list(captions)).save(content, "PNG")
    return content.getvalue()
