"""VLMEvalKit model of a Uni-X folder. tools/run_vlmevalkit.py registers it and starts VLMEvalKit's runner."""

from __future__ import annotations

from vlmeval.vlm.base import BaseModel

from tools.evaluation.answering import ask, open_answerer

MAX_NEW_TOKENS = 64


class UniX(BaseModel):
    """Image understanding: answers to messages of texts and images, reduced to the option that they name."""

    INTERLEAVE = True

    def __init__(self, model_path: str, dtype: str = "", chat: bool = False, exact: bool = True) -> None:
        """`exact` reduces an answer to the option that it names (`tools/evaluation/options.py`)."""
        super().__init__()
        self.answerer = open_answerer(model_path, dtype=dtype, chat=chat, exact=exact)

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Answer to [{"type": "image" or "text", "value": path or text}, ...]."""
        return ask(self.answerer, message, MAX_NEW_TOKENS)
