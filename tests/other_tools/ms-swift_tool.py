"""ms-swift: conversations, with a template by name; pictures, of which it makes seven characters; what is saved opens, reads and draws."""

import json

import torch
from steps import MODEL, TURNS, WORK, draws, first_losses, processor, run, say, seen, turns_loss
from transformers import AutoModelForCausalLM, AutoProcessor

OPTIONS = {
    "model": MODEL,
    "template": "chatml",
    "tuner_type": "full",
    "torch_dtype": "float32",
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": "false",
    "save_only_model": "true",
    "logging_steps": 1,
    "report_to": "none",
    "add_version": "false",
    "output_dir": WORK / "tuned",
    "dataset": WORK / "chat.jsonl",
}


def swift(**more) -> str:
    settings = {**OPTIONS, **more}
    return run("swift", "sft", *(word for name, value in settings.items() for word in (f"--{name}", str(value))))


def trained(rows: list[dict], before: str = "") -> None:
    """A training on rows, whose first loss is the export's own with words `before` the question."""
    (WORK / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed = swift()
    assert "<|im_end|>\n<|im_start|>assistant\nA " in printed
    losses = first_losses(printed)
    own = turns_loss("\n", before)
    seen(f"losses {losses}, of each conversation alone, with the line's end after it, {own:.4f}")
    assert abs(losses[0] - own) < 2e-3 and losses[-1] < losses[0]


torch.set_num_threads(1)
trained([{"messages": turns} for turns in TURNS])
say("text", "SFT, with --template")
try:
    swift(packing="true", max_length=128)
except AssertionError as error:
    assert '"packing" feature requires a flash attention implementation' in str(error), error
else:
    raise AssertionError("packing is not refused")
say("packing", "asks for flash attention")
path = WORK / "picture.png"
processor().pictures(torch.arange(processor().num_codes)[None])[0].save(path)
trained([{"messages": turns, "images": [str(path)]} for turns in TURNS], before="<image>")
say("pictures", "none: the characters `<image>`")
(saved,) = (WORK / "tuned").glob("checkpoint-*")
AutoProcessor.from_pretrained(saved, trust_remote_code=True)
said = draws(AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True).eval())
say("saving and loading", "models")
say("drawing afterwards", said)
