"""axolotl: conversations, alone and packed; what is saved opens, reads and draws. It has no columns of pictures."""

import json

import torch
from steps import MODEL, TURNS, WORK, draws, first_losses, run, say, seen, turns_loss
from transformers import AutoModelForCausalLM, AutoProcessor

SETTINGS = f"""
base_model: {MODEL}
trust_remote_code: true
datasets:
  - path: {WORK}/chat.jsonl
    ds_type: json
    type: chat_template
chat_template: tokenizer_default
eot_tokens: ["<|im_end|>"]
sequence_len: 128
gradient_accumulation_steps: 1
max_steps: 3
num_epochs: 3
optimizer: adamw_torch
learning_rate: 1e-3
lr_scheduler: constant
bf16: false
device: cpu
logging_steps: 1
dataset_num_proc: 1
dataset_prepared_path: {WORK}/prepared
output_dir: {WORK}/tuned
"""

torch.set_num_threads(1)
(WORK / "chat.jsonl").write_text("\n".join(json.dumps({"messages": turns}) for turns in TURNS))
for settings in ("micro_batch_size: 4\n", "micro_batch_size: 1\nsample_packing: true\n"):
    (WORK / "settings.yml").write_text(SETTINGS + settings)
    losses = first_losses(run("axolotl", "train", str(WORK / "settings.yml"), "--launcher", "python"))
    seen(f"losses {losses}, of each conversation alone {turns_loss():.4f}")
    assert abs(losses[0] - turns_loss()) < 2e-3 and losses[-1] < losses[0]
say("text", "SFT")
say("packing", "sample_packing: documents apart")
say("pictures", "none")
AutoProcessor.from_pretrained(WORK / "tuned", trust_remote_code=True)
said = draws(AutoModelForCausalLM.from_pretrained(WORK / "tuned", trust_remote_code=True).eval())
say("saving and loading", "models")
say("drawing afterwards", said)
