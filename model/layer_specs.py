"""Layer kinds as megatron-core specs. Norm, attention and linear classes are named here, so that the same config builds
the same model whether or not apex and transformer-engine are installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from model.config import ModelConfig
from model.fused import rms_norm, swiglu
from model.kernels import TORCH, Kernels, kernels_of
from model.layer_kinds import DOCUMENT, KINDS, SEPARATED_ORDER
from model.recompute import Recipe
from model.routing import RowRouting


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    megatron-core's own fall-back refuses sequence parallelism; marking the weight is all that it asks of a norm.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        vars(self.weight)["sequence_parallel"] = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] -> the same shape."""
        return rms_norm(hidden, self.weight, self.eps)


class SwiGLU(torch.nn.Module):
    """SwiGLU activation, in the place where megatron-core lets transformer-engine put its own."""

    def __init__(self, config: TransformerConfig, **_):
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """[..., 2 * f] -> [..., f]."""
        return swiglu(gate_and_up)


def _norm_again(norm: Any) -> Callable[[Tensor], Tensor]:
    return functools.partial(rms_norm, weight=norm.weight.detach(), eps=norm.eps)


# Cheap activation recomputation: module class -> its function.
CHEAP: dict[type, Recipe] = {RMSNorm: _norm_again, SwiGLU: lambda _: swiglu}


class SharedLayer(TransformerLayer):
    """One set of weights for both modalities, attention over the whole document; works in document order."""

    def __init__(self, *args, arrives_in: str = DOCUMENT, **kwargs):
        super().__init__(*args, **kwargs)
        self.arrives_in = arrives_in

    def forward(self, hidden_states: Tensor, attention_mask=None, packed_seq_params: RowRouting | None = None, **_):
        """[S, 1, h] in the order of the layer before -> [S, 1, h] in document order, and no context."""
        routing = cast(RowRouting, packed_seq_params)
        if self.arrives_in != DOCUMENT:
            hidden_states = routing.reorder(hidden_states, DOCUMENT)
        routing.seed_dropout(f"layer {self.layer_number}")
        return super().forward(hidden_states, attention_mask=None, packed_seq_params=routing.document)


@dataclass
class SeparatedLayerSubmodules:
    """The two branches; both are plain transformer layers."""

    text: ModuleSpec
    vision: ModuleSpec


class SeparatedLayer(MegatronModule):
    """Separate weights and attention for each modality (arXiv 2509.24365, equation 4); works in separated order.

    The branches take contiguous slices of the row: nothing is gathered, masked or counted here.
    """

    def __init__(
        self, config, submodules: SeparatedLayerSubmodules, layer_number=1, arrives_in=SEPARATED_ORDER, **kwargs
    ):
        super().__init__(config=config)
        self.arrives_in = arrives_in
        self.text = build_module(submodules.text, config=config, layer_number=layer_number, **kwargs)
        self.vision = build_module(submodules.vision, config=config, layer_number=layer_number, **kwargs)
        self.layer_number = self.text.layer_number  # counted over all pipeline stages, from 1

    def forward(self, hidden_states: Tensor, attention_mask=None, packed_seq_params: RowRouting | None = None, **_):
        """[S, 1, h] in the order of the layer before -> [S, 1, h] in separated order, and no context."""
        routing = cast(RowRouting, packed_seq_params)
        if self.arrives_in != SEPARATED_ORDER:
            hidden_states = routing.reorder(hidden_states, SEPARATED_ORDER)
        text, vision = in_two(hidden_states, routing.num_text)
        routing.seed_dropout(f"layer {self.layer_number} text")
        text, _ = self.text(text, packed_seq_params=routing.text)
        routing.seed_dropout(f"layer {self.layer_number} vision")
        vision, _ = self.vision(vision, packed_seq_params=routing.vision)
        return torch.cat((text, vision)), None


class MotLayer(SeparatedLayer):
    """Separate weights for each modality, attention over the whole document (Liang et al., arXiv 2411.04996, algorithm
    1).

    Works in separated order as a `SeparatedLayer` does; queries, keys and values change order once, all together, and
    what was attended to once. With sequence parallelism this needs no communication of its own: the projections gather
    the tokens of their modality, and scatter them again.
    """

    def forward(self, hidden_states: Tensor, attention_mask=None, packed_seq_params: RowRouting | None = None, **_):
        """[S, 1, h] in the order of the layer before -> [S, 1, h] in separated order, and no context."""
        routing = cast(RowRouting, packed_seq_params)
        if self.arrives_in != SEPARATED_ORDER:
            hidden_states = routing.reorder(hidden_states, SEPARATED_ORDER)
        routing.seed_dropout(f"layer {self.layer_number}")
        branches = (self.text, self.vision)
        inputs = in_two(hidden_states, routing.num_text)
        attended = self._attend(branches, inputs, routing)
        outputs = [
            feed_forward(branch, add(branch, branch.self_attn_bda, branch.self_attention.linear_proj(part), before))
            for branch, part, before in zip(branches, attended, inputs)
        ]
        return torch.cat(outputs), None

    @staticmethod
    def _attend(branches, inputs, routing: RowRouting) -> tuple[Tensor, Tensor]:
        """Attention over both branches: inputs [tokens(/tp), 1, h] -> outputs [tokens, 1, heads(/tp) * d] of each."""
        heads = []
        for branch, hidden in zip(branches, inputs):
            parts = branch.self_attention.get_query_key_value_tensors(branch.input_layernorm(hidden), None)
            sizes = [part.shape[2] for part in parts]
            heads.append(torch.cat(parts, dim=2).squeeze(1))
        num_text = len(heads[0])  # of all ranks
        query, key, value = torch.cat(heads).index_select(0, routing.to_document).split(sizes, dim=1)
        core = branches[0].self_attention.core_attention  # has no weights, so either works
        attended = core(query, key, value, None, packed_seq_params=routing.document)
        attended = attended.index_select(0, routing.to_separated).flatten(1).unsqueeze(1)
        return in_two(attended, num_text)


class HardMoeLayer(TransformerLayer):
    """Attention with one set of weights, an MLP for each modality: two experts, hard-routed by modality.

    Attention works in document order, the feed-forward in separated order, in which the layer leaves its tokens.
    """

    def __init__(self, config, submodules: TransformerLayerSubmodules, *args, arrives_in: str = DOCUMENT, **kwargs):
        parts = feed_forward_parts(submodules)
        super().__init__(config, submodules, *args, **kwargs)
        self.arrives_in = arrives_in
        feed_forward = MLP(config, parts, ffn_hidden_size=config.ffn_hidden_size, tp_group=self.tp_group)
        self.vision = torch.nn.ModuleDict({"mlp": feed_forward})

    def forward(self, hidden_states: Tensor, attention_mask=None, packed_seq_params: RowRouting | None = None, **_):
        """[S, 1, h] in the order of the layer before -> [S, 1, h] in separated order, and no context."""
        routing = cast(RowRouting, packed_seq_params)
        if self.arrives_in != DOCUMENT:
            hidden_states = routing.reorder(hidden_states, DOCUMENT)
        routing.seed_dropout(f"layer {self.layer_number}")
        attended = self.self_attention(
            self.input_layernorm(hidden_states), attention_mask=None, packed_seq_params=routing.document
        )
        hidden_states = routing.reorder(add(self, self.self_attn_bda, attended, hidden_states), SEPARATED_ORDER)
        text, vision = in_two(self.pre_mlp_layernorm(hidden_states), routing.num_text)
        text, _ = self.mlp(text)
        vision, _ = self.vision["mlp"](vision)
        return add(self, self.mlp_bda, (torch.cat((text, vision)), None), hidden_states), None


def in_two(hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(first `count` tokens, the others). Their gradients are joined; those of two slices would be padded and added."""
    first, others = hidden.split((count, len(hidden) - count))
    return first, others


def add(layer: TransformerLayer, bias_dropout_add, output: tuple[Tensor, Tensor | None], residual: Tensor) -> Tensor:
    """Add (output of a part of `layer`, its bias or None) to the residual stream, with dropout in training."""
    combine = bias_dropout_add(layer.training, layer.config.bias_dropout_fusion)
    return combine(output, residual, layer.hidden_dropout)


def feed_forward(layer: TransformerLayer, hidden: Tensor) -> Tensor:
    """MLP half of a plain layer."""
    return add(layer, layer.mlp_bda, layer.mlp(layer.pre_mlp_layernorm(hidden)), hidden)


def branch_submodules(
    config: ModelConfig, kernels: Kernels, one_norm_for_two: bool = False
) -> TransformerLayerSubmodules:
    """A pre-norm layer of Qwen's architecture: grouped-query attention and a SwiGLU MLP.

    one_norm_for_two: two feed-forwards read what the second norm gives, so that it is part of neither.
    """
    head_norm = kernels.norm if config.qk_norm else IdentityOp
    fused, apart = (kernels.norm_and_column, IdentityOp), (kernels.column, kernels.norm)
    linear_qkv, first_norm = fused if kernels.norm_and_column else apart
    linear_fc1, second_norm = fused if kernels.norm_and_column and not one_norm_for_two else apart
    return TransformerLayerSubmodules(
        input_layernorm=first_norm,
        self_attention=ModuleSpec(
            module=SelfAttention,
            params={"attn_mask_type": AttnMaskType.causal},
            submodules=SelfAttentionSubmodules(
                linear_qkv=linear_qkv,
                core_attention=kernels.attention,
                linear_proj=kernels.row,
                q_layernorm=head_norm,
                k_layernorm=head_norm,
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=second_norm,
        mlp=feed_forward_spec(
            MLPSubmodules(linear_fc1=linear_fc1, linear_fc2=kernels.row, activation_func=kernels.activation)
        ),
        mlp_bda=get_bias_dropout_add,
    )


def feed_forward_spec(parts: MLPSubmodules):
    """MLP spec in the form of the installed megatron-core: 0.19 takes a function, and warns for every layer that has a
    spec; 0.16 a spec."""
    make = getattr(MLP, "as_mlp_submodule", None)
    return functools.partial(make, submodules=parts) if make else ModuleSpec(module=MLP, submodules=parts)


def feed_forward_parts(submodules: TransformerLayerSubmodules) -> MLPSubmodules:
    """Arguments of `feed_forward_spec`."""
    made = submodules.mlp
    return made.submodules if isinstance(made, ModuleSpec) else made.keywords["submodules"]


def layer_spec(config: ModelConfig, index: int, kernels: Kernels) -> ModuleSpec:
    """Spec of layer `index` (from 0). Its input order follows from the kinds before it."""
    kind = KINDS[config.layer_kinds[index]]
    arrives_in = KINDS[config.layer_kinds[index - 1]].order_left if index else kind.order_wanted
    if kind.vision_weights != "all":
        submodules = branch_submodules(config, kernels, one_norm_for_two=kind.vision_weights == "mlp")
        return ModuleSpec(module=kind.layer_class, params={"arrives_in": arrives_in}, submodules=submodules)
    # A layer changes the submodules that it is built from, so each branch has its own.
    text, vision = (
        ModuleSpec(module=TransformerLayer, submodules=branch_submodules(config, kernels)) for _ in range(2)
    )
    return ModuleSpec(
        module=kind.layer_class,
        params={"arrives_in": arrives_in},
        submodules=SeparatedLayerSubmodules(text=text, vision=vision),
    )


def block_submodules(config: ModelConfig, transformer: TransformerConfig, num_local_layers: int, vp_stage=None):
    """Layers of this pipeline stage and the final norm, for megatron-core's TransformerBlock."""
    offset = get_transformer_layer_offset(transformer, vp_stage=vp_stage)
    kernels = kernels_of({"local": TORCH}.get(transformer.transformer_impl, transformer.transformer_impl))
    specs = [layer_spec(config, offset + i, kernels) for i in range(num_local_layers)]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=kernels.norm)


def _left_to_initialise(weight: Tensor) -> Tensor:
    """No-op initializer: megatron-core would initialize weights in the order of construction; `model.initialise` does
    it by name."""
    return weight


FP8: dict[
    str, dict[str, Any]
] = {  # scaling of FP8 -> megatron-core's settings; a history of 1,024 steps is transformer-engine's own choice
    "none": {},
    "delayed": {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"},
    "current": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
}


def transformer_config(
    config: ModelConfig, hidden_dropout: float = 0.0, kernels: str = TORCH, fp8: str = "none", **overrides
) -> TransformerConfig:
    """megatron-core's TransformerConfig of a model; `overrides` are parallel sizes, dtypes and recomputation.

    kernels, fp8: `run.kernels` and `run.fp8`. FP8 is that of transformer-engine's modules, of which the head is none.
    """
    return TransformerConfig(
        transformer_impl="local" if kernels == TORCH else kernels,
        **FP8[fp8],
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        add_bias_linear=False,
        add_qkv_bias=config.attention_bias,
        qk_layernorm=config.qk_norm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        use_te_activation_func=True,  # our function keeps one tensor for the backward pass instead of five
        hidden_dropout=hidden_dropout,
        attention_dropout=0.0,
        init_method=_left_to_initialise,
        output_layer_init_method=_left_to_initialise,
        embedding_init_method=_left_to_initialise,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        hetereogenous_dist_checkpoint=True,  # megatron-core's spelling; layers of two kinds have two sets of names
        **{"gradient_accumulation_fusion": False, **overrides},
    )
