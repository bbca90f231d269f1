"""What the scripts of tools share. Imports nothing of this repository: it lies beside them, and travels as they do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

MODEL, TEXT, WORK = (Path(os.environ[name]) for name in ("MODEL", "TEXT", "WORK"))
EXAMPLES = Path(os.environ["EXAMPLES"]) if "EXAMPLES" in os.environ else None
NAMES = ("red heart", "pizza", "flag of France", "cat")  # pictures to draw


def say(what: str, result: str) -> None:
    """A cell of the tool's row."""
    print(json.dumps({"what": what, "result": result}, ensure_ascii=False), flush=True)


def seen(words: str) -> None:
    """For the terminal alone."""
    print(f"seen: {words}", file=sys.stderr, flush=True)


def text_ids(length: int = 96, rows: int = 4):
    """[rows, length] ids of text tokens, the same in every tool; below the control tokens of the tokenizer."""
    import torch

    values = json.loads((TEXT / "config.json").read_text())
    return torch.randint(0, values["vocab_size"] - 16, (rows, length), generator=torch.Generator().manual_seed(0))


def wanted_logits(path: Path | None = None):
    """Logits [rows, length, text ids] of the export itself, float32, on `text_ids`; kept for a process of another kind."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(text_ids()).logits[..., : model.config.image_token_offset]
    if path:
        torch.save(logits, path)
    return logits


def difference(found, wanted) -> str:
    """The largest difference of logits, as the page has it: one digit."""
    import torch

    found = torch.as_tensor(found, dtype=torch.float32)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    value = float((found - wanted).abs().max())
    seen(f"largest difference {value:.3e}, logits up to {float(wanted.abs().max()):.1f}")
    assert value < 1e-3, value
    return f"{value:.0e}".replace("e-0", "e-")
