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

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

# transformers 4.57 runs this file anew for another folder of the same last name, and leaves what it imports as it was: of an
# export that another release made. tools/convert_to_hf.py ends each file with the release that it belongs to.
_release = Path(__file__).read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
for _name, _module in list(sys.modules.items()) if _release.startswith("CODE = ") else ():
    _imported = _name.startswith(f"{__package__}.") and not _name.endswith((".modeling_uni_x", ".processing_uni_x"))
    if _imported and f'CODE = "{getattr(_module, "CODE", "")}"' != _release:
        del sys.modules[_name]

# transformers 4.57 copies the files that this one imports, and not what those import: so all are named here.
from .attention_uni_x import attend, attention_masks
from .cache_uni_x import record_of
from .configuration_uni_x import LAYER_KINDS, UniXConfig
from .generation_uni_x import PictureGenerationMixin
from .guidance_uni_x import linear  # noqa: F401
from .layers_uni_x import VISION_WEIGHTS, UniXBranch, UniXRMSNorm, rotary_angles, rotate
from .pretrained_uni_x import UniXPreTrainedModel, refuse_adapter_of_another
from .rope_uni_x import Rope, frequencies
from .routing_uni_x import TEXT, Keys, Routing, keys_after, locate, same_ends, starts_of, visual_tokens
from .sampling_uni_x import sample  # noqa: F401
from .shaped_uni_x import ShapesMixin  # noqa: F401
from .shapes_uni_x import Grid  # noqa: F401

# transformers 4.57 and 5 have two names for the cache, in outputs and in what `generate` passes
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class UniXModel(UniXPreTrainedModel):
    """Embedding, layers and final norm: ids [b, s] -> hidden states [b, s, hidden]."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__(config)
        self.kinds = [LAYER_KINDS[kind] for kind in config.layer_kinds]
        self.routes = any(kind.vision_weights != "none" or kind.within_modality for kind in self.kinds)
        self.within = any(kind.within_modality for kind in self.kinds)
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
        self._turned: tuple[tuple, tuple[Tensor, float]] | None = None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        modality: Tensor | bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        cache_position: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Arguments as for `UniXForCausalLM.forward`."""
        refuse_unknown(kwargs)
        cache = past_key_values if cache is None else cache
        config = self.config
        output_hidden_states, output_attentions, use_cache = (
            getattr(config, name, False) if value is None else value
            for name, value in (
                ("output_hidden_states", output_hidden_states),
                ("output_attentions", output_attentions),
                ("use_cache", use_cache),
            )
        )
        # attention maps need eager attention: other kinds compute none
        attention = "eager" if output_attentions else config._attn_implementation
        if self.gradient_checkpointing and self.training:
            use_cache = False  # the recomputation would append every key a second time
        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        given: Any = inputs_embeds if input_ids is None else input_ids
        batch, length = given.shape[:2]
        device = given.device
        past = 0 if cache is None else cache.get_seq_length()
        if cache_position is None:
            cache_position = torch.arange(length, device=device) + past
        total = int(past) + length if not torch.compiler.is_compiling() else None
        keys_seen = keys_after(cache, past + length)
        if attention_mask is not None and (attention_mask.ndim != 2 or total and attention_mask.shape[1] < total):
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}: give [batch, tokens], cached and new ones, "
                f"here [{batch}, {total}]"
            )
        if attention_mask is not None and not torch.compiler.is_compiling() and bool((attention_mask == 1).all()):
            attention_mask = None  # no padding, and one document a row
        visual = visual_tokens(self, input_ids, modality, cache, (batch, length), device)
        real = None if attention_mask is None else attention_mask[:, cache_position].bool()
        if real is not None:  # all padding is text, whatever its ids: they must not change any shape
            visual = visual & real
        cu_seq_lens = same_ends(cu_seq_lens_q, kwargs.get("cu_seq_lens_k"), kwargs.get("cu_seq_lens"))
        starts = starts_of((batch, length), seq_idx, cu_seq_lens, attention_mask)
        tokens, keys = locate(visual, real, starts, position_ids, cache, cache_position, self.within)
        new = Keys(visual.int() + 1, tokens.documents)
        joint_mask, within_mask = attention_masks(cache_position, keys_seen, attention_mask, new, keys, self.within)
        routing = Routing(visual if self.routes else None, modality if isinstance(modality, bool) else None)

        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rotary = rotary_angles(tokens.positions, *self._frequencies(device), hidden.dtype)
        states, maps = [], []
        for index, kind in enumerate(self.kinds):
            states.append(hidden)
            mask = within_mask if kind.within_modality else joint_mask
            args = (index, hidden, rotary, mask, routing, cache, cache_position, attention)
            if self.gradient_checkpointing and self.training:
                hidden, weights = self._gradient_checkpointing_func(self._layer, *args)
            else:
                hidden, weights = self._layer(*args)
            maps.append(weights)
            if not output_hidden_states:
                states.clear()
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=(*states, hidden) if output_hidden_states else None,
            attentions=tuple(maps) if output_attentions else None,
            **{CACHE: cache if use_cache else None},
        )

    def _frequencies(self, device: torch.device) -> tuple[Tensor, float]:
        """Rotary frequencies, cached between steps. Not a buffer, so that casting a model to half precision cannot
        round them; not cached while a graph is traced, whose tensors have no values."""
        config = self.config
        rope = Rope(config.rope_theta, config.rope_scaling)
        if torch.compiler.is_compiling():
            return frequencies(config.head_dim, rope, device)
        key = (config.head_dim, rope.theta, str(rope.scaling), device)
        if self._turned is None or self._turned[0] != key:
            with torch.inference_mode(False):  # not inference tensors: they may be used in training later
                found = frequencies(config.head_dim, rope, device)
            if type(found[0]) is not Tensor or found[0].is_meta:
                return found
            self._turned = key, found
        return self._turned[1]

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        routing: Routing,
        cache: Cache | None,
        cache_position: Tensor,
        attention: str,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer: hidden states [b, s, hidden] -> the same shape, and eager attention's weights."""
        row_routing, vision_weights = routing, self.kinds[index].vision_weights
        if vision_weights != "all":
            routing = Routing(None)
        branches: list[Any] = [
            self.layers[index] if b == TEXT else self.vision_layers[str(index)] for b in routing.branches
        ]
        inputs = routing.split(hidden.flatten(0, 1))
        alone = branches[0] if len(branches) == 1 else None
        if alone is not None:
            merged = alone(inputs[0])
        else:
            projected = [branch(x) for branch, x in zip(branches, inputs, strict=True)]
            merged = map(routing.merge, zip(*projected, strict=True))
        batch, length, _ = hidden.shape
        q, k, v = (part.view(batch, length, *part.shape[1:]).transpose(1, 2) for part in merged)
        if rotary[0].device != q.device:
            rotary = (rotary[0].to(q.device), rotary[1].to(q.device))
        if length == 1:  # a decoding step is many small kernels: queries and keys are rotated in one
            q, k = rotate(torch.cat((q, k), dim=1), rotary).split((q.shape[1], k.shape[1]), dim=1)
        else:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.update(k, v, index, {"cache_position": cache_position})
        attended, weights = attend(attention, branches[0].self_attn, q, k, v, mask)
        attended = attended.flatten(0, 1)
        if vision_weights == "mlp":
            x, normed = branches[0](inputs[0], attended, feed_forward=False)
            mlps: list[Any] = [
                self.layers[index].mlp if b == TEXT else self.vision_layers[str(index)] for b in row_routing.branches
            ]
            parts = [mlp(part) for mlp, part in zip(mlps, row_routing.split(normed), strict=True)]
            merged = row_routing.merge(parts)
            return (x.to(merged.device) + merged).view_as(hidden), weights
        if alone is not None:
            return alone(inputs[0], attended).view_as(hidden), weights
        parts = [branch(*pair) for branch, *pair in zip(branches, inputs, routing.split(attended), strict=True)]
        return routing.merge(parts).view_as(hidden), weights


LOSS_ARGUMENTS = ("num_items_in_batch", "ignore_index", "shift_labels")
# redundant arguments: other names of packed documents' ends, equal to cu_seq_lens_q, and lengths that follow from it
FOLLOWING_ARGUMENTS = ("cu_seq_lens_k", "max_length_q", "max_length_k", "cu_seq_lens", "return_dict")


def refuse_unknown(arguments: dict) -> None:
    """Raises TypeError for arguments that the model does not use."""
    unknown = [name for name in arguments if name not in FOLLOWING_ARGUMENTS and arguments[name] is not None]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}: Uni-X has no such thing")


class UniXForCausalLM(UniXPreTrainedModel, PictureGenerationMixin, GenerationMixin):
    """Uni-X with its LM head: text by transformers' `generate`, images by `generate_images`."""

    # tied weights: transformers 5 needs the source's name, 4.57 reads the keys of a dictionary as its list
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: UniXConfig) -> None:
        super().__init__(config)
        self.model = UniXModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(refuse_adapter_of_another)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        modality: Tensor | bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [b, s or logits_to_keep, vocab] of the token after each one.

        `input_ids` [b, s], or `inputs_embeds` [b, s, hidden] with `modality` [b, s], True for tokens of pictures, which
        layers route by. Where all new tokens are of one kind, `modality` may be True or False: then no value decides
        what is computed, and a graph that is compiled has one branch. `attention_mask` [b, cached + s]: 0 for padding,
        on the left when generating. `position_ids` [b, s]: positions in the document, counted from the mask if not
        given; where they do not grow the next document of a packed row starts, and documents do not see each other.
        `seq_idx` [b, s], the number of each token's document, and `cu_seq_lens_q` [documents + 1], where those of the
        one row start, say the same. `labels` [b, s]: ids to predict, -100 to leave out; the loss is the mean
        cross-entropy of each next token. `past_key_values`, or `cache` as transformers 5 names it: any cache of
        transformers. With `output_attentions` attention is computed eagerly. transformers 4.57 adds `cache_position`; 5
        warns of a signature that names it.

        Raises ValueError for inputs that cannot be routed, TypeError for arguments that the model has no use for.
        """
        loss_arguments = {name: kwargs.pop(name) for name in LOSS_ARGUMENTS if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            modality=modality,
            seq_idx=seq_idx,
            cu_seq_lens_q=cu_seq_lens_q,
            use_cache=use_cache,
            cache_position=kwargs.pop("cache_position", None),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.config.text_logits_only:
            first = self.config.image_token_offset
            logits[..., first : first + self.config.codebook_size] = float("-inf")
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def get_submodule(self, target: str) -> nn.Module:
        """As in torch. Detects prompt learning of peft (0.21.2), which asks for this name and leaves no other trace."""
        self._prompt_learned |= target == "embeddings.word_embeddings"
        return super().get_submodule(target)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, modality: Tensor | None = None, **kwargs
    ) -> dict:
        """As in transformers; `modality` is that of `inputs_embeds`, which only the first step has.

        Of a step whose tokens are all of one kind it is said which: a compiled step then has one branch, not both.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        cache = inputs.get("past_key_values", inputs.get("cache"))
        if cache is not None and cache.layers:
            record_of(cache)  # here, since a traced graph cannot create one
        inputs.pop("tokenizer", None)  # `generate` reads it for its stop_strings, and passes it on
        if kwargs.get("position_ids") is None:  # computed from the mask; this model counts positions itself
            inputs.pop("position_ids", None)
        if inputs.get("inputs_embeds") is not None:
            if modality is not None:
                inputs["modality"] = modality
        elif self.model.routes and inputs["input_ids"].shape[1] == 1:
            visual = int(self.config.is_visual(inputs["input_ids"]).sum())
            if visual in (0, len(inputs["input_ids"])):
                inputs["modality"] = bool(visual)
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
        """The 2-D mask [b, all slots] instead of the causal one that `generate` would build: separated layers need
        another.

        Unused slots of a static cache are 0 in it, so that its shape is that of every step.
        """
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        if attention_mask is None or attention_mask.ndim != 2 or cache is None:
            return attention_mask
        slots = keys_after(cache, attention_mask.shape[1])
        return nn.functional.pad(attention_mask, (0, max(0, slots - attention_mask.shape[1])))


# cached: `generate` asks for it at every step, and it would cost as much as a layer of a small model
UniXForCausalLM.forward.__signature__ = inspect.signature(UniXForCausalLM.forward)
UniXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
UniXModel.register_for_auto_class("AutoModel")
# transformers adds this file to sys.modules but not to its package, where dill looks (datasets pickles for its workers)
if __package__:
    setattr(import_module(__package__), __name__.rpartition(".")[2], sys.modules[__name__])
