"""bitsandbytes: 8 bit, 8 bit of weights alone, or nf4. The model is saved before its first forward (see the page)."""

import sys

import torch
from steps import MODEL, WORK, float32_pictures, quantizer, seen, share
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

options = dict(trust_remote_code=True, dtype=torch.float32, device_map="cpu")
if sys.argv[1] == "8":
    config = BitsAndBytesConfig(load_in_8bit=True)
elif sys.argv[1] == "8-weights":
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.01)
else:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def quantized():
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=config, **options)
    return model


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


quantizer(quantized, opened, at_least={"8": 0.98, "8-weights": 0.99, "4": 0.93}[sys.argv[1]])
if sys.argv[-1] == "4":
    model = quantized().eval()
    value = share(model, float32_pictures())  # on CPUs with AVX-512 bf16 this packs the weights
    try:
        model.save_pretrained(WORK / "late")
    except ValueError as error:
        assert "would save it wrong: save before" in str(error), error
        seen(str(error))
    else:
        assert share(opened(WORK / "late").eval(), float32_pictures()) == value
