#!/usr/bin/env bash
# inspect-ai 0.3.285, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# temperature=0 asks inspect-ai's providers for the likeliest answer, and evaluation scripts set it by habit. The provider "hf" hands
# it to transformers' generate together with do_sample=True, and every sample fails: the evaluation ends with status "error".
# Without a temperature it samples; greedy answers need do_sample=False as a model argument, which turns the error into a warning.
#
# Output seen:
#   temperature 0: error, has to be a strictly positive float
#   no temperature: success, answers differ: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 inspect-ai==0.3.285
cat > ask.py <<'EOF2'
import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={"<eos>": 256, **{char: index for index, char in enumerate(alphabet)}}, merges=[]))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
fast.save_pretrained("tiny")
torch.manual_seed(0)
Qwen3ForCausalLM(Qwen3Config(
    vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32, eos_token_id=256, pad_token_id=256, bos_token_id=None,
)).save_pretrained("tiny")

for name, config in (("temperature 0", {"temperature": 0}), ("no temperature", {})):
    model = get_model(
        "hf/local", model_path="tiny", tokenizer_path="tiny", device="cpu", memoize=False,
        config=GenerateConfig(max_tokens=8, **config),
    )
    task = Task(dataset=[Sample(input="a", target="b") for _ in range(3)], scorer=includes())
    (log,) = eval(task, model=model, display="none", log_dir="logs")
    if log.status == "error":
        text = "has to be a strictly positive float"
        print(f"{name}: error, {text if text in log.error.message else log.error.message}")
    else:
        answers = {sample.output.completion for sample in log.samples}
        print(f"{name}: {log.status}, answers differ: {len(answers) > 1}")
EOF2
venv/bin/python ask.py 2>/dev/null | tee seen
grep -qx 'temperature 0: error, has to be a strictly positive float' seen
grep -qx 'no temperature: success, answers differ: True' seen
