#!/usr/bin/env bash
# transformers 4.57.6 and 5.24.0, generate(token_healing=True, tokenizer=...), with torch 2.13.0: a TypeError of torch.where for every
# tokenizer without a token for the beginning of a text, as those of Qwen2, Qwen2.5 and Qwen3 are.
#
#   bos_token absent      TypeError: where() received an invalid combination of arguments - got (bool, int, Tensor)
#   bos_token present     the last token of the prompt is taken back and written again: healed
#
# heal_tokens replaces pad tokens by the beginning token before it looks at the prompts. Its id is None there, so the comparison gives
# one bool instead of a tensor. Nothing names the token or the option.
#
# Expected: the same as with such a token, which is not otherwise used. Output seen, 2026-11-30:
#   4.57.6, bos_token None: TypeError where() received an invalid combination of arguments
#   4.57.6, bos_token <|endoftext|>: 'a http:' became 5 tokens
#   5.24.0: the same two lines
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/heal.py" <<'PYTHON'
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

transformers.logging.set_verbosity_error()
END = "<|endoftext|>"
words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ht", "htt", "http", ":/", "://", END]
merges = [("h", "t"), ("ht", "t"), ("htt", "p"), (":", "/"), (":/", "/")]
pieces = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
for beginning in (None, END):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token=END, pad_token=END, bos_token=beginning)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    prompt = tokenizer("a http:", return_tensors="pt", return_token_type_ids=False)
    try:
        made = model.generate(**prompt, token_healing=True, tokenizer=tokenizer, max_new_tokens=1, do_sample=False)
        said = f"'a http:' became {made.shape[1]} tokens"
    except TypeError as error:
        said = f"TypeError {str(error).partition(' - ')[0]}"
    print(f"{transformers.__version__}, bos_token {beginning}: {said}")
    assert said.startswith("TypeError where()" if beginning is None else "'a http:' became"), said
PYTHON
for version in 4.57.6 5.24.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3 "transformers==$version"
  "$folder/venv/bin/python" -W ignore "$folder/heal.py"
done
