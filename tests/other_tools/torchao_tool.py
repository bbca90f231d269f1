"""torchao: int8 weights. Beside it diffusers 0.35.2, which then cannot be imported: pictures decode without it."""

import torch
from steps import MODEL, quantizer
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

options = dict(trust_remote_code=True, dtype=torch.float32, device_map="cpu")
config = TorchAoConfig(quant_type=Int8WeightOnlyConfig())


def quantized():
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=config, **options)
    return model


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


try:
    from diffusers import VQModel  # noqa: F401
except Exception as error:
    print(f"diffusers: {error}")
else:
    raise AssertionError("diffusers 0.35.2 can be imported beside torchao 0.18: the page says otherwise")
quantizer(quantized, opened, at_least=0.98)
