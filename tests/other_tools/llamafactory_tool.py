"""LLaMA-Factory: conversations; pictures, which it refuses; packing, of which the export refuses the masks."""

import json
import shutil

import torch
from steps import MODEL, TURNS, WORK, draws, first_losses, run, say, seen, turns_loss
from transformers import AutoModelForCausalLM, AutoProcessor

SETTINGS = f"""
model_name_or_path: {MODEL}
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: full
dataset: chat
dataset_dir: {WORK}
template: chatml
cutoff_len: 128
output_dir: {WORK}/tuned
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
max_steps: 3
learning_rate: 1.0e-3
lr_scheduler_type: constant
logging_steps: 1
report_to: none
save_only_model: true
use_cpu: true
overwrite_cache: true
"""


def trained(more: str = "", **columns) -> str:
    """What a training on the conversations, each with more columns, prints."""
    rows = [{"messages": turns, **columns} for turns in TURNS]
    (WORK / "chat.json").write_text(json.dumps(rows))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    names = {name: name for name in rows[0]}
    told = {"chat": {"file_name": "chat.json", "formatting": "sharegpt", "columns": names, "tags": tags}}
    (WORK / "dataset_info.json").write_text(json.dumps(told))
    (WORK / "settings.yml").write_text(SETTINGS + more)
    shutil.rmtree(WORK / "tuned", ignore_errors=True)  # it goes on from a checkpoint that is there
    return run("llamafactory-cli", "train", str(WORK / "settings.yml"))


def refused(expected: str, *given, **columns) -> None:
    try:
        trained(*given, **columns)
    except AssertionError as error:
        assert expected in str(error), error
    else:
        raise AssertionError(f"not refused: {expected}")


torch.set_num_threads(1)
losses = first_losses(trained())
seen(f"losses {losses}, of each conversation alone, with the line's end after it, {turns_loss(chr(10)):.4f}")
assert abs(losses[0] - turns_loss("\n")) < 2e-3 and losses[-1] < losses[0]
say("text", "SFT")
AutoProcessor.from_pretrained(WORK / "tuned", trust_remote_code=True)
said = draws(AutoModelForCausalLM.from_pretrained(WORK / "tuned", trust_remote_code=True).eval())
refused("attention_mask has shape", "packing: true\nneat_packing: true\n")
say("packing", "neat_packing: refused")
refused("does not support image input", images=["picture.png"])
say("pictures", "refused")
say("saving and loading", "models")
say("drawing afterwards", said)
