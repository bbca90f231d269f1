"""onnxruntime: the plain text folder as an ONNX file by torch's own exporter."""

import onnxruntime
import torch
from steps import TEXT, WORK, difference, say, text_ids, wanted_logits
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(TEXT, dtype=torch.float32).eval()


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


size = {0: torch.export.Dim("rows", min=1, max=64), 1: torch.export.Dim("length", min=2, max=4096)}
ids = text_ids(length=8, rows=2)
torch.onnx.export(Logits(model), (ids,), str(WORK / "text.onnx"), dynamo=True, dynamic_shapes=[size])
session = onnxruntime.InferenceSession(str(WORK / "text.onnx"), providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {session.get_inputs()[0].name: text_ids().numpy()})
say("largest difference of logits", difference(logits, wanted_logits()))
