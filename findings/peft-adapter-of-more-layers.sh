#!/usr/bin/env bash
# peft 0.21.2, transformers 4.57.6, torch 2.13.0, Python 3.11.
#
# An adapter that was trained on a model of four layers is opened on a model of two of the same widths. PeftModel.from_pretrained raises
# nothing and warns of nothing: half of the adapter is dropped, and the other half is heard.
#
# Output seen:
#   adapter: 8 tensors, in layers 0, 1, 2, 3
#   opened on two layers: 4 tensors have a place, 0 warnings
#
# Compare the names in adapter_model.safetensors with those of the model before you use one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.6 peft==0.21.2 "numpy==2.1.3"

venv/bin/python - <<'EOF' 2>&1 | grep -v accelerator
import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM


def model(layers):
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2
        )
    )


get_peft_model(model(4), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
saved = load_file("adapter/adapter_model.safetensors")
layers = sorted({name.split(".layers.")[1].split(".")[0] for name in saved})
print(f"adapter: {len(saved)} tensors, in layers {', '.join(layers)}")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    opened = PeftModel.from_pretrained(model(2), "adapter")
placed = [name for name in opened.state_dict() if "lora_" in name]
about = [one for one in seen if "adapter" in str(one.message) or "key" in str(one.message)]
print(f"opened on two layers: {len(placed)} tensors have a place, {len(about)} warnings")
assert (len(saved), len(placed), len(about)) == (8, 4, 0), "this changed: the comment above is out of date"
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    get_peft_model(model(2), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("smaller")
    PeftModel.from_pretrained(model(4), "smaller")
print(f"the other way round: {len([one for one in seen if 'missing' in str(one.message).lower()])} warnings")
EOF
