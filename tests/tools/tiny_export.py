"""A tiny exported Uni-X folder with random weights: every part is real, nothing has learned anything."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model.prompts import PromptTemplates
from model.shapes import size_word
from tests.model.tiny_hf import tiny_model
from tests.tokenization.vq_folders import TINY_DIFFUSERS
from tokenization.vq import load_vq
from tools.export.from_checkpoint import write_code, write_processor

SPECIALS = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>")
CHATML = ("<|im_start|>", "<|im_end|>")
CODEBOOK = TINY_DIFFUSERS["num_vq_embeddings"]
GRID = (4, 4)
SIDE = 2 * GRID[0]  # pixels: two a code


def write_tokenizer(folder: Path, added: tuple[str, ...] = ()) -> dict[str, int]:
    """A byte-level tokenizer without merges: one token a byte. Returns the ids of the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*added, *SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {name: tokenizer.token_to_id(name) for name in SPECIALS}


SHAPES = (GRID, (3, 5), (5, 3), (2, 8), (8, 2))


def write_export(folder: Path, added: tuple[str, ...] = (), shapes: tuple = (), **changes) -> Path:
    """Write the folder that `tools/convert_to_hf.py` would; `changes` go to the model's config, `added` are tokens.

    `shapes` are the grids of a model of several, GRID first.
    """
    from diffusers import VQModel
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    eos, start, end = write_tokenizer(folder, added).values()
    offset = end + 1
    if shapes:
        controls = Tokenizer.from_file(str(folder / "tokenizer.json"))
        words = [controls.encode(size_word(grid)).ids for grid in shapes]
        changes["picture_shapes"] = [{"grid": list(grid), "ids": ids} for grid, ids in zip(shapes, words)]
    model = tiny_model(
        seed=1,
        **{
            "vocab_size": offset + CODEBOOK,
            "image_token_offset": offset,
            "codebook_size": CODEBOOK,
            "vision_start_token_id": start,
            "vision_end_token_id": end,
            "eos_token_id": eos,
            "pad_token_id": eos,
            **changes,
        },
    )
    model.save_pretrained(folder)
    torch.manual_seed(2)
    VQModel(**TINY_DIFFUSERS).save_pretrained(folder / "vq")
    (folder / "vq" / "preprocess.json").write_text(json.dumps({"image_size": SIDE, "name": "tiny"}))
    templates = PromptTemplates(
        text_to_image=("{caption} Draw.",),
        image_to_text=("It is:",),
        grid=GRID,
        vq_fingerprint=load_vq(folder / "vq").fingerprint,
        shapes=shapes,
    )
    (folder / "unix_prompts.json").write_text(templates.to_json())
    settings = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    write_code(folder)
    write_processor(folder, model.config, SIDE, 2 if shapes else 0)
    return folder
