"""Joint vocabulary: text ids first, image tokens after, and the test which is which."""

from __future__ import annotations

from dataclasses import dataclass

QWEN25_EMBEDDING_ROWS = 151_936  # Qwen2.5 1.5B and 3B: rows of the embedding table; beyond all text ids
IGNORED = -100  # label of a token that is not trained on
RELEASED_OFFSET = 151_665  # len(tokenizer) of Qwen2.5: the published models put code 0 here, over reserved rows


@dataclass(frozen=True)
class Vocabulary:
    """Text tokens have ids below `image_token_offset`; code c of the image codebook has id `offset + c`."""

    image_token_offset: int
    codebook_size: int
    vision_start_id: int
    vision_end_id: int
    eos_id: int

    @property
    def size(self) -> int:
        """Number of ids: rows of the embedding before padding."""
        return self.image_token_offset + self.codebook_size

    def is_visual(self, ids):
        """[...] integer array or tensor -> boolean mask of the same shape: which tokens the vision branch handles.

        `<|vision_start|>` is visual, because its position predicts the first code; `<|vision_end|>` is text, because
        its position predicts text (Uni-X, arXiv 2509.24365, section 3; the released code does the same).
        """
        return (ids >= self.image_token_offset) | (ids == self.vision_start_id)

    def is_code(self, ids):
        """[...] ids -> boolean mask: which tokens are image tokens (codes). Losses are reported by this split."""
        return ids >= self.image_token_offset
