"""Model card (README.md) of an export: architecture, training data and scores, from files that the tools wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.families import FAMILIES, family_of, with_layers_of
from pretrain.checkpoint import read_state
from pretrain.config_names import with_current_names
from pretrain.json_lines import lines_backwards, parsed
from pretrain.system.errors import TryAgain, UserError
from tokenization.remote import inside, read_small
from tokenization.vq import LICENCES, SHIPPED
from tools.evaluation.record import conditions, is_record

CAPTION = "red heart"
LONGEST = 80
"""Characters of a caption in the snippet, at most."""
EXAMPLES = 4  # captions that a page offers
PRIVATE = re.compile(r"@|://|www\.|\d[\d ()/.-]{4,}\d")
"""Mail and web addresses, numbers of telephones and documents."""

SNIPPET = """\
import sys
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

folder = sys.argv[1] if len(sys.argv) > 1 else "."
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()

prompt = processor.draw([CAPTION])
codes = model.generate_images(**prompt, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
picture = processor.pictures(codes)[0]
picture.save("picture.png")

prompt = processor.caption([picture])
said = model.generate(**prompt, max_new_tokens=32, do_sample=False, logits_processor=model.text_only())
print(processor.texts(said, prompt)[0])"""


def model_card(config, templates, vq, checkpoint: Path, results: Sequence[Path] = ()) -> str:
    """Text of the card. `checkpoint` is in its run folder, or alone, which gives a shorter card.

    Raises UserError for a file of results that is not JSON.
    """
    state = read_state(checkpoint)
    run = run_of(checkpoint)
    separated = sum(kind != "shared" for kind in config.layer_kinds)
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in templates.grids)
    shaped = (
        ' Its shape, unless it is asked for (`processor.draw(captions, shape="4:3")`), is chosen by the model.'
        if templates.shapes
        else ""
    )
    licence, words = licences(config, vq)
    return f"""---
library_name: transformers
pipeline_tag: text-to-image
{licence}
---
# Uni-X model

A unified autoregressive transformer that reads and writes text and pictures (Uni-X, arXiv 2509.24365):
{config.num_hidden_layers} layers, {separated} of them with weights of their own for text and vision. Trained for
{state["step"]} steps ({state["rows"]} rows). A picture is {grids} codes out of {config.codebook_size}, by
the image tokenizer in `vq/`;{shaped} `processor` turns pictures, captions and conversations into ids and back.

```python
{SNIPPET.replace("CAPTION", json.dumps(caption_to_draw(run), ensure_ascii=False))}
```

Edits are asked for with `processor.edit(pictures, instructions)`, conversations with `processor.apply_chat_template`.
`AutoModelForCausalLM` takes `dtype` and `device_map` as usual. Needs torch, transformers 4.57 or newer, numpy and
pillow, and accelerate for a `device_map`. The text path is that of a {FAMILIES[family_of(config)].causal_lm};
`tools/convert_to_hf.py --text-only` writes it as a plain folder.

## Training

{training(run, state)}

## Evaluation

{evaluation(run, state, results)}

## Licences

{words}
"""


def caption_to_draw(run: Path | None) -> str:
    """Caption for the snippet: the first of the run's that is fit, else CAPTION."""
    return next(iter(captions_to_draw(run)), CAPTION)


def captions_to_draw(run: Path | None) -> list[str]:
    """The first of the run's `log.sample_prompts` that are fit for a public card.

    These may come from the corpus, so those with an address or a long number are passed over.
    """
    prompts = run_settings(run).get("log", {}).get("sample_prompts") if run else None
    fit = [text for text in prompts or () if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable()]
    return [text for text in fit if not PRIVATE.search(text) and "`" not in text][:EXAMPLES]


def run_of(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint, None for one that is alone."""
    return next((folder for folder in checkpoint.parents[:2] if (folder / "config.yaml").is_file()), None)


def run_settings(run: Path) -> dict[str, Any]:
    """The run's resolved configuration, by today's names."""
    import yaml

    return with_current_names(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))[0]


def training(run: Path | None, state: dict[str, Any]) -> str:
    """Data and tokens, from the run's resolved configuration and the manifests of its datasets."""
    if run is None:
        return "The checkpoint was exported without its run folder, so its data are not known here."
    config = run_settings(run)
    sequence_length = config["data"]["sequence_length"]
    lines = [
        f"{state['rows']} rows of {sequence_length} tokens: {state['rows'] * sequence_length:,} tokens, padding included.",
        "",
        "| data | mixed by | documents | text tokens | pictures | image tokens |",
        "|---|---|---|---|---|---|",
    ]
    shares = any(source.get("share") for source in config["data"]["sources"])
    for source in config["data"]["sources"]:
        counts = counts_of(source["path"])
        found = (counts.get(name, "not known") for name in ("documents", "text_tokens", "pictures", "image_tokens"))
        shown = " | ".join(f"{value:,}" if isinstance(value, int) else value for value in found)
        lines.append(f"| {Path(source['path']).name} | {mixed_by(source, shares)} | {shown} |")
    return "\n".join(lines)


def mixed_by(source: dict[str, Any], shares: bool) -> str:
    """A source's share of the mixture: where any source has a share of the tokens, weights do not count."""
    return f"share {source.get('share', 0.0)}" if shares else f"weight {source.get('weight', 1.0)}"


def counts_of(dataset: str) -> dict[str, int]:
    """Counts of a dataset, in a folder or at a URL; empty if it is no longer there."""
    try:
        return json.loads(read_small(inside(dataset, "manifest.json")))["counts"]
    except (OSError, UserError, TryAgain):
        return {}


def evaluation(run: Path | None, state: dict[str, Any], results: Sequence[Path]) -> str:
    """A table of the last held-out losses of the run and of every number in the files of results.

    Of a result of tools/evaluate.py these are its scores, with how they were made.
    """
    lines = []
    metrics = run / "metrics.jsonl" if run else None
    if metrics and metrics.is_file():
        measured = (parsed(line) for _, line in lines_backwards(metrics) if b"heldout/" in line)
        last = next((line for line in measured if line and line["step"] <= state["step"]), None)
        if last:
            lines += [(f"{key}, step {last['step']}", last[key], "metrics.jsonl") for key in last if "heldout" in key]
    for path in results:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error}): give a file that a tool wrote") from None
        before = len(lines)
        if is_record(content):
            if not content["complete"]:
                raise UserError(f"{path}: is a result of a part of {content['task']}: give one of all items")
            named = numbers(content.get("scores", {}), content["task"])
            lines += [(name, value, f"{path.name} ({conditions(content)})") for name, value in named]
        else:
            lines += [(name, value, path.name) for name, value in numbers(content)]
        if len(lines) == before:
            raise UserError(f"{path}: holds no figure in an object: give a file that a tool wrote")
    if not lines:
        return "Not evaluated yet."
    table = [f"| {name} | {value:.6g} | {source} |" for name, value, source in lines]
    return "\n".join(["| measure | value | read from |", "|---|---|---|", *table])


def numbers(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in nested objects, with their paths as names, without lists (raw data)."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers(value, f"{name}/{key}" if name else key)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield name, content


def text_licence(config) -> str:
    """The card's line on text tokenizer and text weights; empty where their base is not known."""
    first = FAMILIES[family_of(config)]
    # an export does not say which of several families with its layers it started from: the card names the licence of each
    same = [family for family in with_layers_of(config) if config.image_token_offset >= family.own_vocabulary]
    if not same:
        return ""
    names = {first.flavour: "Qwen" if first.own_vocabulary else "a language model"}
    of_each = "; from ".join(f"{names.get(family.flavour, family.flavour)}: {family.licence}" for family in same)
    return f"- Text tokenizer, and text weights where training started from {of_each}."


def licences(config, vq) -> tuple[str, str]:
    """Licences of the parts: the card's metadata lines and its paragraph."""
    parts = [text_licence(config)] if text_licence(config) else []
    unknown = ("other", f"that of whoever made it; its family is {vq.family}.")
    name, words = LICENCES.get(vq.name if vq.name in SHIPPED else vq.family, unknown)
    parts.append(f"- Image tokenizer `{vq.name}` in `vq/`: {words}")
    parts.append("- The model's code in this folder: Apache-2.0.")
    metadata = f"license: {name}" + ("\nlicense_name: see-the-card" if name == "other" else "")
    return metadata, "\n".join(parts)
