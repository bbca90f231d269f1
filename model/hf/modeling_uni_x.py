"""The Uni-X decoder for transformers. Travels inside exported checkpoints: imports torch and transformers only.

A model is a list of layers, each of one kind. In a `separated` layer text and vision tokens have weights of their own
and attend within their modality; in a `shared` layer all tokens use one set of weights and attend to all that came
before (Uni-X, arXiv 2509.24365, equation 4). For comparison there are `mot` layers, whose tokens have weights of their
own and attend to all, and `moe_hard` layers, which share all but the MLP. Positions are those of the document in every
layer. One embedding, one final norm and one LM head serve both modalities.

Text-branch and shared weights have the names of Qwen2 and Qwen3, the vision weights of layer I are in
`model.vision_layers.I`, so that a plain Qwen class reads the text path of a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

# transformers 4.57 copies the files that this one imports, and not what those import: so all are named here.
from .cache_uni_x import reserved_cache  # noqa: F401
from .configuration_uni_x import LAYER_KINDS, UniXConfig
from .generation_uni_x import PictureGenerationMixin
from .guidance_uni_x import linear  # noqa: F401
from .routing_uni_x import TEXT, Routing, attention_masks, keys_after, remember_modality
from .sampling_uni_x import sample  # noqa: F401

# transformers 4.57 and 5 have two names for the cache, in outputs and in what `generate` passes
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class UniXRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 as Qwen does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class UniXAttention(nn.Module):
    """The projections of one branch. Attention itself mixes branches, so it is not in here."""

    is_causal = True  # read by sdpa_attention_forward, as are the next two attributes

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query_size, key_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = UniXRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = UniXRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, hidden] -> queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim], before RoPE."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.q_norm(q), self.k_norm(k), v


class UniXMLP(nn.Module):
    """SwiGLU feed-forward: [n, hidden] -> [n, hidden]."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class UniXBranch(nn.Module):
    """The weights of one layer for one modality, or for both in a shared layer."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.input_layernorm = UniXRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = UniXAttention(config)
        self.post_attention_layernorm = UniXRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = UniXMLP(config)

    def before_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, hidden] -> what `UniXAttention.project` gives for the normed input."""
        return self.self_attn.project(self.input_layernorm(x))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Layer input [n, hidden] and attention output [n, heads * head_dim] -> layer output [n, hidden]."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))

    def after_shared_attention(self, x: Tensor, attended: Tensor, vision: UniXVisionMLP, routing: Routing) -> Tensor:
        """The same for all tokens, [b * s, ...], where vision tokens have an MLP of their own."""
        x = x + self.self_attn.o_proj(attended)
        mlps = [self.mlp if branch == TEXT else vision.mlp for branch in routing.branches]
        parts = routing.split(self.post_attention_layernorm(x))
        return x + routing.merge([mlp(part) for mlp, part in zip(mlps, parts, strict=True)])


class UniXVisionMLP(nn.Module):
    """What a layer with a feed-forward for each modality has for vision tokens."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.mlp = UniXMLP(config)


VISION_WEIGHTS = {"mlp": UniXVisionMLP, "all": UniXBranch}


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary position embedding, each [b, 1, s, head_dim], computed in float32.

    Computed where used, not kept as a buffer, so that casting a model to half precision cannot round the frequencies.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=position_ids.device).float()
    angles = position_ids[:, None, :, None].float() * (1.0 / theta ** (steps / head_dim))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary position embedding to [b, heads, s, head_dim]; the halves of a head are the rotated pairs."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(attention: UniXAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries [b, heads, s, head_dim], keys and values [b, kv_heads, total, head_dim] -> [b, s, heads * head_dim].

    `mask` is [b or 1, 1, s, total], True where a query sees a key, or None for causal attention.
    """
    scale = attention.head_dim**-0.5
    if q.shape[2] > 1:
        attended, _ = sdpa_attention_forward(attention, q, k, v, mask, scaling=scale)
        return attended.flatten(2)
    # While decoding, the heads that share a key become queries of one head: no key is copied for each of them.
    q = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).flatten(1)[:, None]


class UniXPreTrainedModel(PreTrainedModel):
    config_class = UniXConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The branches of one layer work on the same activations, so a device map must not put them on different devices.
    _no_split_modules = ["UniXModel"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True


class UniXModel(UniXPreTrainedModel):
    """Embedding, layers and final norm: ids [b, s] -> hidden states [b, s, hidden]."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__(config)
        if config._attn_implementation != "sdpa":
            raise ValueError(f"attn_implementation {config._attn_implementation!r} is not supported: use 'sdpa'")
        self.kinds = [LAYER_KINDS[kind] for kind in config.layer_kinds]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(UniXBranch(config) for _ in self.kinds)
        self.vision_layers = nn.ModuleDict(
            {
                str(index): VISION_WEIGHTS[kind.vision_weights](config)
                for index, kind in enumerate(self.kinds)
                if kind.vision_weights != "none"
            }
        )
        self.norm = UniXRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_hidden_states: bool | None = None,
        inputs_embeds: None = None,
    ) -> BaseModelOutputWithPast:
        """Arguments as in transformers; see `UniXForCausalLM.forward`."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("layers route tokens by their ids: pass input_ids, not inputs_embeds")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False  # the recomputation would append every key a second time
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        batch, length = input_ids.shape
        if cache_position is None:
            past = int(cache.get_seq_length()) if cache is not None else 0
            cache_position = torch.arange(past, past + length, device=input_ids.device)
        total = int(cache_position[-1]) + 1
        if attention_mask is not None and (attention_mask.ndim != 2 or attention_mask.shape[1] < total):
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}: give [batch, tokens], cached and new ones, "
                f"here [{batch}, {total}]"
            )
        if position_ids is None:
            position_ids = cache_position[None]
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, cache_position]

        visual = self.config.is_visual(input_ids)
        if attention_mask is not None:  # all padding is text, whatever its ids: they must not change any shape
            visual = visual & attention_mask[:, cache_position].bool()
        keys_seen = keys_after(cache, total)
        modality = self._modality(visual, cache, cache_position, keys_seen)
        joint_mask, within_mask = attention_masks(cache_position, keys_seen, attention_mask, modality)
        routing = Routing(visual)

        hidden = self.embed_tokens(input_ids)
        rotary = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta, hidden.dtype)
        states = []
        for index, kind in enumerate(self.kinds):
            if output_hidden_states:
                states.append(hidden)
            args = (
                index,
                hidden,
                rotary,
                within_mask if kind.within_modality else joint_mask,
                routing,
                cache,
                cache_position,
            )
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(self._layer, *args)
            else:
                hidden = self._layer(*args)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=(*states, hidden) if output_hidden_states else None,
            **{CACHE: cache if use_cache else None},
        )

    def _modality(
        self, visual: Tensor, cache: Cache | None, cache_position: Tensor, keys_seen: int
    ) -> tuple[Tensor, Tensor] | None:
        """Modality of the new tokens [b, 1, s, 1] and of all keys [b, 1, total, 1]; None if no layer needs it."""
        if not any(kind.within_modality for kind in self.kinds):
            return None
        new = known = (visual[:, None, :, None] + 1).to(torch.int8)  # 1 text, 2 vision; 0 is an unused cache slot
        if cache is not None:
            known = remember_modality(cache, new, cache_position, len(self.kinds))
        if known.shape[2] != keys_seen:
            length = visual.shape[1]
            raise ValueError(
                f"past_key_values holds {keys_seen - length} tokens but the modality of {known.shape[2] - length}: "
                "pass a cache that this model filled"
            )
        return new, known

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        routing: Routing,
        cache: Cache | None,
        cache_position: Tensor,
    ) -> Tensor:
        """One layer: hidden states [b, s, hidden] -> the same shape."""
        row_routing, vision_weights = routing, self.kinds[index].vision_weights
        if vision_weights != "all":
            routing = Routing(None)
        branches = [self.layers[index] if b == TEXT else self.vision_layers[str(index)] for b in routing.branches]
        inputs = routing.split(hidden.flatten(0, 1))
        projected = [branch.before_attention(x) for branch, x in zip(branches, inputs, strict=True)]
        q, k, v = (
            routing.merge(list(parts)).unflatten(0, hidden.shape[:2]).transpose(1, 2)
            for parts in zip(*projected, strict=True)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.update(k, v, index, {"cache_position": cache_position})
        attended = attend(branches[0].self_attn, q, k, v, mask).flatten(0, 1)
        if vision_weights == "mlp":
            vision = self.vision_layers[str(index)]
            return branches[0].after_shared_attention(*inputs, attended, vision, row_routing).view_as(hidden)
        attended = routing.split(attended)
        outputs = [branch.after_attention(*pair) for branch, *pair in zip(branches, inputs, attended, strict=True)]
        return routing.merge(outputs).view_as(hidden)


class UniXForCausalLM(UniXPreTrainedModel, PictureGenerationMixin, GenerationMixin):
    """Uni-X with its LM head: text by transformers' `generate`, pictures by `generate_images`."""

    # transformers 5 wants to know what it is tied to, 4.57 takes the keys of a dictionary for its list
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: UniXConfig) -> None:
        super().__init__(config)
        self.model = UniXModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [b, s or logits_to_keep, vocab] of the token after each one.

        `input_ids` [b, s]. `attention_mask` [b, cached + s]: 0 for padding, on the left when generating. `position_ids`
        [b, s]: positions in the document, counted from the mask if not given. `labels` [b, s]: ids to predict, -100 to
        leave out; the loss is the mean cross-entropy of each next token. `past_key_values`, or `cache` as transformers
        5 names it: any cache of transformers. transformers 4.57 adds `cache_position`, which 5 no longer knows.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            use_cache=use_cache,
            cache_position=kwargs.pop("cache_position", None),
            output_hidden_states=output_hidden_states,
            inputs_embeds=kwargs.pop("inputs_embeds", None),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.config.text_logits_only:
            first = self.config.image_token_offset
            logits[..., first : first + self.config.codebook_size] = float("-inf")
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: outputs.get(CACHE)},
        )

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs) -> Tensor | None:
        """Keep the mask [b, total] that `generate` would turn into a causal one: separated layers need another."""
        return attention_mask


UniXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
