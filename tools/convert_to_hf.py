#!/usr/bin/env python
"""Export a training checkpoint as a Hugging Face folder that generates text and pictures on its own.

Any layout's checkpoint will do, without the processes that wrote it: tensors are read and written one at a time. The
folder holds the weights under Qwen's names, the model's code, the text tokenizer, the image tokenizer and the
prompts, so it needs neither this repository nor the run. It is published whole, by one rename.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import shutil

from model.errors import UserError, run_command

MARKS = ("config.json", "modeling_unix.py", "unix_prompts.json")  # files by which an earlier export is known
CODE = Path(__file__).resolve().parents[1] / "model" / "hf"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/convert_to_hf.py --checkpoint work/demo/run --output work/demo/model",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder (its newest good one) or checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; an export there is replaced")
    parser.add_argument("--vq", default="", help="image tokenizer to put in (default: the one that the run names)")
    return parser.parse_args()


def export(checkpoint: Path, output: Path, vq_name: str = "") -> None:
    """Write the export of a verified checkpoint folder. Raises UserError for a wrong image tokenizer or output."""
    from model.config import ModelConfig
    from model.prompts import PromptTemplates
    from tokenization.vq import load_vq

    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(json.loads((checkpoint / "model.json").read_text(encoding="utf-8")))
    prompts = (checkpoint / "unix_prompts.json").read_text(encoding="utf-8")
    templates = PromptTemplates.from_json(prompts, str(checkpoint / "unix_prompts.json"))
    vq = load_vq(vq_name or state["vq"])
    if vq.fingerprint != templates.vq_fingerprint:
        raise UserError(
            f"{vq_name or state['vq']}: is not the image tokenizer of the training shards (fingerprint "
            f"{vq.fingerprint[:12]}, they have {templates.vq_fingerprint[:12]}): give that one with --vq"
        )
    check_output(output)
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dtype = write_weights(checkpoint, temporary, config)
    write_configuration(temporary, config, dtype)
    write_tokenizer(temporary, checkpoint / "tokenizer.json", config)
    (temporary / "unix_prompts.json").write_text(prompts, encoding="utf-8")
    vq.save(temporary / "vq")
    (temporary / "README.md").write_text(model_card(config, templates, state), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)


def write_weights(checkpoint: Path, folder: Path, config) -> str:
    """Weights under Qwen's names, read tensor by tensor from whatever layout wrote them -> their dtype as a word."""
    import torch

    from model.weight_names import to_hugging_face, training_names
    from pretrain.sharded_files import read_whole, stored_tensors
    from tools.safetensors_shards import write_shards

    names, stored = list(training_names(config)), stored_tensors(checkpoint)
    absent = [name for name in names if name not in stored]
    if absent:
        raise UserError(f"{checkpoint}: holds no {absent[0]}: its model.json is of another model")
    shapes = ((name, torch.empty(stored[name][0], dtype=stored[name][1], device="meta")) for name in names)
    described = list(to_hugging_face(config, shapes))
    write_shards(folder, described, to_hugging_face(config, read_whole(checkpoint, names)))
    return str(described[0][1].dtype).removeprefix("torch.")


def check_output(output: Path) -> None:
    """Raises UserError unless `output` is new, empty, or an export, which may be replaced."""
    if output.is_dir() and (not any(output.iterdir()) or all((output / name).is_file() for name in MARKS)):
        return
    if output.exists():
        raise UserError(f"{output} exists and is no export: remove it, or choose another --output")


def write_configuration(folder: Path, config, dtype: str) -> None:
    """config.json with the auto map, generation_config.json, and the code that they name."""
    for path in sorted(CODE.glob("*_unix.py")):
        shutil.copy(path, folder / path.name)
    values = {
        "architectures": ["UniXForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_unix.UniXConfig",
            "AutoModelForCausalLM": "modeling_unix.UniXForCausalLM",
        },
        "model_type": "unix_ar",
        "dtype": dtype,
        **config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    generation = {"eos_token_id": config.eos_token_id, "pad_token_id": config.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer_json: Path, config) -> None:
    """tokenizer.json as it is, and the two files that let AutoTokenizer open it."""
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    tokens = {added["id"]: added["content"] for added in json.loads(tokenizer_json.read_text("utf-8"))["added_tokens"]}
    eos = tokens.get(config.eos_token_id)
    if eos is None:
        raise UserError(f"{tokenizer_json}: has no added token with the model's end-of-text id {config.eos_token_id}")
    special = {"eos_token": eos, "pad_token": eos}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings}
    settings |= {**special, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def model_card(config, templates, state: dict) -> str:
    """README.md of the export, with a snippet that runs as it stands."""
    separated = sum(kind != "shared" for kind in config.layer_kinds)
    rows, columns = templates.grid
    wording = templates.text_to_image[0].replace("{caption}", "{}")
    return f"""---
library_name: transformers
pipeline_tag: text-to-image
---
# Uni-X model

A unified autoregressive transformer that reads and writes text and pictures (Uni-X, arXiv 2509.24365):
{config.num_hidden_layers} layers, {separated} of them with weights of their own for text and vision. Trained for
{state["step"]} steps ({state["rows"]} rows). A picture is {rows} x {columns} codes out of {config.codebook_size}.

```python
import json, sys
import torch
from diffusers import VQModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1] if len(sys.argv) > 1 else "."
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
vq = VQModel.from_pretrained(folder + "/vq").float().eval()
prompts = json.load(open(folder + "/unix_prompts.json", encoding="utf-8"))
start, end = model.config.vision_start_token_id, model.config.vision_end_token_id


def encode(*pieces):  # prompts are encoded piece by piece, as in training
    return [i for piece in pieces if piece for i in tokenizer.encode(piece, add_special_tokens=False)]


before, after = prompts["text_to_image"][0].split("{{caption}}")
ids = torch.tensor([encode(before, "red heart", after) + [start]])
unconditional = torch.tensor([encode(prompts["unconditional"]) + [start]])
rows, columns = prompts["grid"]
codes = model.generate_images(ids, unconditional_ids=unconditional, num_codes=rows * columns, guidance_scale=3.0,
                              generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    latents = vq.quantize.get_codebook_entry(codes.flatten(), (1, rows, columns, vq.quantize.vq_embed_dim))
    pixels = vq.decode(latents, force_not_quantize=True).sample[0].clamp(-1, 1)
Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save("picture.png")

picture = (codes[0] + model.config.image_token_offset).tolist()
ids = torch.tensor([[start, *picture, end, *encode(prompts["image_to_text"][0])]])
said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False,
                      logits_processor=model.text_only())
print(tokenizer.decode(said[0, ids.shape[1]:], skip_special_tokens=True))
```

The default prompt for a picture is "{wording}".
"""


def main() -> int:
    """Find the checkpoint, export it."""
    arguments = parse_arguments()
    from model.torchvision_compat import ensure_torchvision
    from pretrain import checkpoint

    ensure_torchvision()
    found = checkpoint.find(arguments.checkpoint)
    export(found, arguments.output, arguments.vq)
    print(f"{arguments.output}: exported from {found}")
    return 0


if __name__ == "__main__":
    run_command(main)
