"""Answers of an exported folder to questions about images, for harnesses with their own runners.

Needs torch, transformers and the folder only, so it works in a harness' environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.evaluation.options import choose, options_in, yes_or_no

NO_OPTION = "(none)"  # no scorer reads it as an option, or as yes or no
TENSORS = {"padding": True, "return_tensors": "pt"}
_ASKS_YES_NO = re.compile(r"\byes or no\b|\byes/no\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answerer:
    """A model and its processor. `chat` asks in a user turn; `exact` reduces answers to the option that they name."""

    model: Any
    processor: Any
    chat: bool = False
    exact: bool = True

    def answer(self, questions: Sequence[str], pictures: Sequence[Sequence], max_new_tokens: int) -> list[str]:
        """Greedy answer to each question, asked after its own images (PIL, any number)."""
        import torch

        if self.chat:
            parts = [[{"type": "image", "image": picture} for picture in own] for own in pictures]
            parts = [[*own, {"type": "text", "text": text}] for own, text in zip(parts, questions, strict=True)]
            prompts = self.processor.apply_chat_template(
                [[{"role": "user", "content": own}] for own in parts], add_generation_prompt=True, **TENSORS
            )
        else:
            prompts = self.processor(text=list(questions), images=[list(own) for own in pictures], **TENSORS)
        with torch.no_grad():
            generated = self.model.generate(
                **prompts.to(self.model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=self.model.text_only(),
            )
        texts = self.processor.texts(generated, prompts)
        return [reduced(*pair) for pair in zip(questions, texts, strict=True)] if self.exact else texts

    def log_likelihood(self, question: str, pictures: Sequence, continuation: str) -> tuple[float, bool]:
        """Log probability of a text after images and a question, among texts, and whether it is the greedy one."""
        import torch

        start = self.processor.ids_of([*pictures, question])
        rest = self.processor.encode(continuation)
        ids = torch.tensor([[*start, *rest]], device=self.model.device)
        with torch.no_grad():
            logits = self.model(ids, use_cache=False).logits[0, len(start) - 1 : -1].float()
        config = self.model.config
        logits[:, config.image_token_offset : config.image_token_offset + config.codebook_size] = float("-inf")
        wanted = ids[0, len(start) :]
        chosen = logits.log_softmax(-1).gather(1, wanted[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())


def open_answerer(folder: str, device: str = "", dtype: str = "", chat: bool = False, exact: bool = True) -> Answerer:
    """Open an exported folder with its own code. float32 on a CPU and bfloat16 on a GPU, unless `dtype` is given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=kind).to(device).eval()
    return Answerer(model, AutoProcessor.from_pretrained(folder, trust_remote_code=True), chat, exact)


def reduced(question: str, answer: str) -> str:
    """An answer to a multiple-choice or yes-no question as the one word it names, or NO_OPTION.

    Answers to other questions stay as they are.
    """
    options = options_in(question)
    if options:
        return choose(answer, options) or NO_OPTION
    if _ASKS_YES_NO.search(question):
        return yes_or_no(answer) or NO_OPTION
    return answer


def ask(answerer: Answerer, message: Sequence[dict], max_new_tokens: int) -> str:
    """Answer to a message of parts {"type": "image" or "text", "value": path or text}: images, then all text.

    Raises ValueError for parts of another type.
    """
    from PIL import Image

    strange = {part["type"] for part in message} - {"image", "text"}
    if strange:
        raise ValueError(f"parts of type {sorted(strange)} in a message: this model takes pictures and text")
    pictures = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
    question = "\n".join(part["value"] for part in message if part["type"] == "text")
    (answer,) = answerer.answer([question], [pictures], max_new_tokens)
    return answer
