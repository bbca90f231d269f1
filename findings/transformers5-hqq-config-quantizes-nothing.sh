#!/usr/bin/env bash
# transformers 5.24.0 beside 4.57.6, hqq 0.2.8.post1, torch 2.13.0, Python 3.11.
#
# HqqConfig is imported, takes its arguments and is accepted by from_pretrained in both versions. 4.57.6 quantizes the model with
# it. 5.24.0 reads the configuration and the weights, and then has no operation for the method: loading ends in
# NotImplementedError.
#
# Output seen:
#   4.57.6: 14 HQQLinear layers
#   5.24.0: NotImplementedError: QuantizationMethod.HQQ is not available yet and will be supported soon.
#
# Whoever moves to transformers 5 keeps hqq models of 4.57 in an environment of their own, or quantizes with hqq itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > quantize.py <<'EOF2'
import torch
import transformers
from transformers import AutoModelForCausalLM, HqqConfig, Qwen3Config

config = Qwen3Config(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32,
)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained("tiny")
try:
    model = AutoModelForCausalLM.from_pretrained(
        "tiny", dtype=torch.float32, quantization_config=HqqConfig(nbits=4, group_size=64), device_map="cpu"
    )
except NotImplementedError as error:
    print(f"{transformers.__version__}: NotImplementedError: {error}")
else:
    count = sum(type(module).__name__ == "HQQLinear" for module in model.modules())
    print(f"{transformers.__version__}: {count} HQQLinear layers")
EOF2
python3 -m venv venv
for version in 4.57.6 5.24.0; do
    venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 "transformers==$version" accelerate==1.15.0 hqq==0.2.8.post1
    rm -rf tiny
    venv/bin/python quantize.py 2>/dev/null | tee -a seen
done
grep -qx '4.57.6: 14 HQQLinear layers' seen
grep -qx '5.24.0: NotImplementedError: QuantizationMethod.HQQ is not available yet and will be supported soon.' seen
