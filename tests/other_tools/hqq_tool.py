"""hqq: 4 bit, in float32 (its layers fail in half precision on a CPU)."""

import torch
from steps import MODEL, quantizer
from transformers import AutoModelForCausalLM, HqqConfig

options = dict(trust_remote_code=True, dtype=torch.float32, device_map="cpu")
config = HqqConfig(nbits=4, group_size=64)


def quantized():
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=config, **options)
    return model


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


quantizer(quantized, opened, at_least=0.93)
