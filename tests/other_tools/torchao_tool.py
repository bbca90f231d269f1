"""torchao: int8 weights. Beside it diffusers 0.35.2, which then cannot be imported: pictures decode without it."""

import torch
from steps import MODEL, quantizer
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig


def quantized():
    config = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    return AutoModelForCausalLM.from_pretrained(
        MODEL, trust_remote_code=True, dtype=torch.float32, quantization_config=config
    )


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


try:
    from diffusers import VQModel  # noqa: F401
except Exception as error:
    print(f"diffusers: {error}")
else:
    raise AssertionError("diffusers 0.35.2 can be imported beside torchao 0.18: the page says otherwise")
quantizer(quantized, opened, at_least=0.98)
