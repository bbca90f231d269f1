"""Perplexity by modality: the exponential of the held-out losses."""

from __future__ import annotations

import math
from argparse import Namespace

from tools.evaluation.losses import heldout


def perplexity(args: Namespace) -> dict:
    """The result of `heldout`, its losses as perplexities. Raises UserError."""
    record = heldout(args)
    scores = {
        name.replace("loss", "perplexity"): math.exp(value)
        for name, value in record["scores"].items()
        if name.startswith("loss")
    }
    return {**record, "task": "perplexity", "scores": scores}
