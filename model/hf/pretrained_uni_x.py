"""Base class of Uni-X models: saving with the processor's files, refusing wrong loads. Imports torch and transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor, device, nn
from transformers import PreTrainedModel

from .configuration_uni_x import AUTO_MAP, UniXConfig

PROCESSOR_FILES = (
    "processor_config.json",
    "unix_prompts.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vq",
)
"""What an export has beside its model, the first one always."""


class UniXPreTrainedModel(PreTrainedModel):
    """Base class of Uni-X models: supported features of transformers, saving, and the embedding's fixed size."""

    config_class = UniXConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniXBranch", "UniXVisionMLP"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_flash_attn = False  # its kernels have no mask, and separated layers need one
    _can_compile_fullgraph = True

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in transformers; adds the code files and the processor of the folder that the model was loaded from.

        Trainers save the model and at most a tokenizer, and a folder without the rest could neither read nor draw.
        """
        check_packed(self)
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        super().save_pretrained(save_directory, *args, **kwargs)
        source, target = Path(self.name_or_path or "."), Path(save_directory)
        if not (source / PROCESSOR_FILES[0]).is_file() or source.resolve() == target.resolve():
            return
        for path in (*(source / name for name in PROCESSOR_FILES), *source.glob("*_uni_x.py")):
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            elif path.is_file() and not (target / path.name).exists():
                shutil.copy(path, target / path.name)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """No-op while the new ids are below the image tokens' rows. Raises ValueError otherwise.

        The ids of picture codes follow those of text, so rows can only be added between the two, which would change
        the id of every code. Bases with spare rows, as Qwen's 151,936 for 151,665 ids, keep them: new tokens go there.
        """
        room = self.config.image_token_offset
        if new_num_tokens in (None, self.config.vocab_size) or new_num_tokens <= room:
            return self.get_input_embeddings()
        raise ValueError(
            f"resize_token_embeddings({new_num_tokens}): text has the ids 0 to {room - 1}, from {room} on they are "
            "picture codes, which would be overwritten: use at most that many text tokens, or convert the base model again "
            "with a larger --image-token-offset"
        )


def refuse_adapter_of_another(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others) -> None:
    """Raises ValueError where an adapter's weights do not fit `module`, a UniXForCausalLM, by name or shape.

    peft loads adapters without `strict`, and torch then drops what has no place: of an adapter of other layers the rest
    would be heard, and nothing be said. Only loads that hold none of the model's own weights are looked at.
    """
    given = {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
    with device("meta"):
        plain = type(module)(module.config).state_dict().keys()
    if not plain.isdisjoint(given):  # torch reports every load to this hook as a strict one
        return
    own = module.state_dict()
    for name, weight in given.items():
        if name not in own or weight.shape != own[name].shape:
            here = "no such part" if name not in own else f"shape {list(own[name].shape)}"
            raise ValueError(
                f"the adapter is of another model: its {name} has shape {list(weight.shape)}, and this model has {here}: open "
                "the model that adapter_config.json names under base_model_name_or_path"
            )


def check_packed(model: nn.Module) -> None:
    """Raises ValueError for 4-bit weights that bitsandbytes (0.50.2) would save wrong without an error.

    On CPUs with AVX-512 bf16 it packs them anew at the first forward, and on saving it restores the scales of blocks only
    where these are quantized too.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False) and not getattr(state, "original_nested", False):
            raise ValueError(
                f"{name}: bitsandbytes has packed it for this CPU at the first forward, and would save it wrong: save before "
                "the first forward, or quantize with bnb_4bit_use_double_quant=True"
            )
