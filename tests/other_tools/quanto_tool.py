"""quanto: int8 or int4 weights, saved as quanto's own documentation has it for any module."""

import json
import sys

import torch
from optimum.quanto import freeze, qint4, qint8, quantization_map, quantize, requantize
from safetensors.torch import load_file, save_file
from steps import MODEL, quantizer
from transformers import AutoModelForCausalLM


def whole():
    return AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()


def quantized():
    model = whole()
    if sys.argv[1] == "8":
        quantize(model, weights=qint8)
    else:  # codes are told apart by little: a head of 4 bit loses some
        quantize(model, weights=qint4, exclude="lm_head")
    freeze(model)
    return model


def save(model, folder):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "map.json").write_text(json.dumps(quantization_map(model)))


def opened(folder):
    model = whole()  # of the export: its classes, and the processor
    requantize(model, load_file(folder / "model.safetensors"), json.loads((folder / "map.json").read_text()))
    return model


quantizer(quantized, opened, at_least=0.98 if sys.argv[1] == "8" else 0.93, save=save)
