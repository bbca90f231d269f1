#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# A prefix-tuned Qwen2: its forward pass attends to the tuned prefix, its generate() does not. The first logits of generate are
# those of the model without the adapter, without a word. With transformers 4.57.6 and the same peft they are the tuned ones.
#
# Output seen:
#   transformers 4.57.6: generate begins as the tuned model
#   transformers 5.24.0: generate begins as the model without its prefix
#
# An evaluation by losses sees the tuning, one by generated answers measures the base model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat > run.py <<'EOF'
import warnings

warnings.simplefilter("ignore")
import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, eos_token_id=None, bos_token_id=None, **sizes)).eval()
tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
ids = torch.arange(1, 9)[None]
with torch.no_grad():
    for weight in tuned.prompt_encoder.parameters():
        weight.normal_(std=3)
    without, with_prefix = (each(input_ids=ids).logits[0, -1] for each in (tuned.get_base_model(), tuned))
    assert (without - with_prefix).abs().max() > 0.1
    answer = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )
first = answer.logits[0][0]
said = "the tuned model" if torch.allclose(first, with_prefix, atol=1e-5) else "another one"
if torch.allclose(first, without, atol=1e-5):
    said = "the model without its prefix"
print(f"transformers {transformers.__version__}: generate begins as {said}")
EOF

for version in 4.57.6 5.24.0; do
    python3 -m venv venv-$version
    venv-$version/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==$version peft==0.21.2 \
        accelerate==1.15.0 "numpy==2.1.3"
    venv-$version/bin/python run.py 2>/dev/null | tail -n 1 | tee -a seen
done
diff seen - <<'EOF'
transformers 4.57.6: generate begins as the tuned model
transformers 5.24.0: generate begins as the model without its prefix
EOF
