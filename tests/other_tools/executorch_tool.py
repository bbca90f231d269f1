"""executorch: the plain text folder as a program of XNNPACK for rows of a fixed length."""

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from steps import TEXT, WORK, difference, say, text_ids, wanted_logits
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(TEXT, dtype=torch.float32).eval()


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


program = torch.export.export(Logits(model), (text_ids(rows=1),))
lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
(WORK / "text.pte").write_bytes(lowered.buffer)
method = Runtime.get().load_program(WORK / "text.pte").load_method("forward")
logits = torch.cat([method.execute([row[None].contiguous()])[0].clone() for row in text_ids()])
say("largest difference of logits", difference(logits, wanted_logits()))
