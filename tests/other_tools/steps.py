"""What the scripts of tools share. Imports nothing of this repository: it lies beside them, and travels as they do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

MODEL, TEXT, WORK = (Path(os.environ[name]) for name in ("MODEL", "TEXT", "WORK"))
EXAMPLES = Path(os.environ["EXAMPLES"]) if "EXAMPLES" in os.environ else None
NAMES = ("red heart", "pizza", "flag of France", "cat")  # pictures to draw
ASKED = (
    ("What is red?", "A heart."),
    ("What is round?", "A pizza."),
    ("Who purrs?", "A cat."),
    ("Who barks?", "A dog."),
)
TURNS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in ASKED
]


def say(what: str, result: str) -> None:
    """A cell of the tool's row."""
    print(json.dumps({"what": what, "result": result}, ensure_ascii=False), flush=True)


def seen(words: str) -> None:
    """For the terminal alone."""
    print(f"seen: {words}", file=sys.stderr, flush=True)


def text_ids(length: int = 96, rows: int = 4):
    """[rows, length] ids of text tokens, the same in every tool; below the control tokens of the tokenizer."""
    import torch

    values = json.loads((TEXT / "config.json").read_text())
    return torch.randint(0, values["vocab_size"] - 16, (rows, length), generator=torch.Generator().manual_seed(0))


def wanted_logits(path: Path | None = None):
    """Logits [rows, length, text ids] of the export itself, float32, on `text_ids`; kept for a process of another kind."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(text_ids()).logits[..., : model.config.image_token_offset]
    if path:
        torch.save(logits, path)
    return logits


def difference(found, wanted) -> str:
    """The largest difference of logits, as the page has it: one digit."""
    import torch

    found = torch.as_tensor(found, dtype=torch.float32)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    value = float((found - wanted).abs().max())
    seen(f"largest difference {value:.3e}, logits up to {float(wanted.abs().max()):.1f}")
    assert value < 1e-3, value
    return f"{value:.0e}".replace("e-0", "e-")


def run(*command: str) -> str:
    """What a tool's own command prints. Raises AssertionError with it where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def first_losses(printed: str) -> list[float]:
    """The losses that transformers' trainers print, in their order."""
    return [float(value) for value in re.findall(r"'loss': '?([0-9.]+)", printed)]


def turns_loss(ending: str = "", before: str = "") -> float:
    """The export's own loss of the answers of TURNS and their ends of turn, each conversation alone, in float32.

    Some tools learn what stands after the end of a turn, too: `ending`; some put words `before` the question.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
    reader, losses = processor(), []
    for asked, answered in TURNS:
        turns = [{**asked, "content": before + asked["content"]}, answered]
        text = reader.apply_chat_template(turns, tokenize=False)
        whole, begun = (reader.tokenizer.encode(part) for part in (text.rstrip("\n") + ending, text.split("A ")[0]))
        with torch.no_grad():
            chances = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        losses += [-chances[place - 1, whole[place]] for place in range(len(begun), len(whole))]
    return float(torch.stack(losses).mean())


def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)


def float32_pictures() -> dict:
    """Ids [n, s + codes], mask, and the codes of pictures of `NAMES`, the likeliest ones by the export in float32.

    Kept in WORK for the process that opens the saved model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = WORK / "pictures.pt"
    if path.exists():
        return torch.load(path)
    model = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
    prompt = processor().draw(NAMES)
    codes = model.generate_images(**prompt, guidance_scale=1.0, temperature=0)
    ids = torch.cat([prompt["input_ids"], codes + model.config.image_token_offset], 1)
    mask = torch.cat([prompt["attention_mask"], torch.ones_like(codes)], 1)
    found = {"ids": ids, "mask": mask, "codes": codes}
    assert share(model, found) == 1
    torch.save(found, path)
    return found


def share(model, pictures: dict) -> float:
    """Of the codes that float32 drew: the share that `model` finds likeliest where float32's are before them."""
    import torch

    with torch.no_grad():
        logits = model(pictures["ids"], attention_mask=pictures["mask"]).logits.float()
    count, first = pictures["codes"].shape[1], model.config.image_token_offset
    found = logits[:, -count - 1 : -1, first : first + model.config.codebook_size].argmax(-1)
    wrong = found != pictures["codes"]
    own = logits[:, -count - 1 : -1, first : first + model.config.codebook_size]
    gaps = own.max(-1).values - own.gather(-1, pictures["codes"][..., None])[..., 0]
    if wrong.any():
        seen(
            f"{int(wrong.sum())} other codes; float32's lie below by {sorted(round(float(gap), 3) for gap in gaps[wrong])}"
        )
    return 1 - float(wrong.float().mean())


def draws(model) -> str:
    """Pictures of a quantized or merged model, drawn, decoded and read again."""
    import torch

    reader = processor()
    chance = [torch.Generator().manual_seed(seed) for seed in range(2)]
    codes = model.generate_images(**reader.draw(NAMES[:2]), guidance_scale=3.0, generator=chance)
    pictures = reader.pictures(codes)
    said = model.generate(**reader.caption(pictures), max_new_tokens=4, logits_processor=model.text_only())
    assert len(pictures) == len(said) == 2 and len(set(codes[0].tolist())) > 4
    return "pictures drawn and read"


def linears(model) -> int:
    """How many layers are no longer torch's Linear with a plain weight. Raises AssertionError for none."""
    import torch

    plain, names = [], [name for name, _ in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    for name in names:
        layer = model.get_submodule(name)
        tensors = [tensor for tensor in (*layer.parameters(), *layer.buffers())]
        usual = (
            type(layer) is torch.nn.Linear and type(tensors[0].data) is torch.Tensor and tensors[0].is_floating_point()
        )
        if usual and not hasattr(layer, "quantization_scheme"):  # by which llm-compressor rounds in each forward
            plain.append(name)
    seen(f"{len(names) - len(plain)} of {len(names)} quantized; not: {plain[:4]}")
    assert len(plain) < len(names)
    return len(names) - len(plain)


def quantizer(quantized, opened, at_least: float, save=lambda model, folder: model.save_pretrained(folder)) -> None:
    """The cells of a quantizer: `quantized()` makes the model, `opened(folder)` reads it in a process of its own.

    With the word "again" this process is that one.
    """
    folder = WORK / "quantized"
    if sys.argv[-1] == "again":
        model = opened(folder)
        model.eval()
        linears(model)
        seen(f"after saving: {share(model, float32_pictures()):.4f}")
        say("after saving", f"{share(model, float32_pictures()):.2f}")
        say("drawing afterwards", draws(model))
        assert share(model, float32_pictures()) >= at_least
        return
    pictures, model = float32_pictures(), quantized()
    model.eval()
    linears(model)
    save(model, folder)
    value = share(model, pictures)
    seen(f"share {value:.4f} of {pictures['codes'].numel()} codes")
    say("codes as in float32", f"{value:.2f}")
    assert value >= at_least, value
    subprocess.run([sys.executable, *sys.argv, "again"], check=True)
