"""hqq: 4 bit, in float32 (its layers fail in half precision on a CPU)."""

import torch
from steps import MODEL, quantizer
from transformers import AutoModelForCausalLM, HqqConfig


def quantized():
    config = HqqConfig(nbits=4, group_size=64)
    return AutoModelForCausalLM.from_pretrained(
        MODEL, trust_remote_code=True, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, device_map="cpu")


quantizer(quantized, opened, at_least=0.93)
