"""llm-compressor: 8 bit weights (W8A16), without calibration data."""

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from steps import MODEL, quantizer
from transformers import AutoModelForCausalLM


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


def quantized():
    model = opened(MODEL)
    recipe = QuantizationModifier(targets="Linear", scheme="W8A16", ignore=["lm_head"])
    oneshot(model=model, recipe=recipe, trust_remote_code_model=True)
    return model


quantizer(quantized, opened, at_least=0.98)
