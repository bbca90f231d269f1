"""OpenVINO by optimum-intel: the plain text folder; float32 has to be asked for on CPUs with bf16."""

from optimum.intel import OVModelForCausalLM
from steps import TEXT, difference, say, text_ids, wanted_logits

model = OVModelForCausalLM.from_pretrained(TEXT, export=True, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
ids = text_ids()
logits = model(input_ids=ids, attention_mask=ids * 0 + 1).logits
say("largest difference of logits", difference(logits, wanted_logits()))
