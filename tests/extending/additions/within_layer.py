"""A kind of layer with one set of weights in which a token attends to its own modality only."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from model.layer_kinds import SEPARATED_ORDER
from model.routing import RowRouting


class WithinLayer(TransformerLayer):
    """Separated attention without separated weights; works in separated order."""

    def __init__(self, *args, arrives_in: str = SEPARATED_ORDER, **kwargs):
        super().__init__(*args, **kwargs)
        self.arrives_in = arrives_in

    def forward(self, hidden_states: Tensor, attention_mask=None, packed_seq_params: RowRouting = None, **_):
        """[S, 1, h] in the order of the layer before -> [S, 1, h] in separated order, and no context."""
        routing = packed_seq_params
        if self.arrives_in != SEPARATED_ORDER:
            hidden_states = routing.reorder(hidden_states, SEPARATED_ORDER)
        parts = []
        for name, of_one, part in (
            ("text", routing.text, hidden_states[: routing.num_text]),
            ("vision", routing.vision, hidden_states[routing.num_text :]),
        ):
            routing.seed_dropout(f"layer {self.layer_number} {name}")
            parts.append(super().forward(part, packed_seq_params=of_one)[0])
        return torch.cat(parts), None
