"""Text tokens a second: the export by transformers, the plain folder by transformers, ctranslate2 and mlx-lm, in turn in one process.

Not a part of make test-tools. In an environment with ctranslate2.txt and mlx-lm.txt of requirements/, one thread each:

    MODEL=work/demo/model TEXT=work/demo/text WORK=$(mktemp -d) OMP_NUM_THREADS=1 python tests/other_tools/runtimes_speed.py
"""

import statistics
import time

import ctranslate2
import mlx.core as mx
import torch
from ctranslate2.converters import TransformersConverter
from mlx_lm import load
from mlx_lm.generate import generate_step
from steps import MODEL, TEXT, WORK
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS, ROUNDS = 64, 20
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(TEXT)
prompt = tokenizer("Once upon a time", return_tensors="pt")
ids = prompt["input_ids"]
export = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
plain = AutoModelForCausalLM.from_pretrained(TEXT, dtype=torch.float32).eval()
TransformersConverter(str(TEXT)).convert(str(WORK / "ct2"), force=True)
generator = ctranslate2.Generator(
    str(WORK / "ct2"), device="cpu", compute_type="float32", inter_threads=1, intra_threads=1
)
mlx_model, _ = load(str(TEXT))
ends = mx.array([plain.generation_config.eos_token_id]).flatten()
length = dict(min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False)


def by_transformers(model, **options):
    return model.generate(**prompt, **length, **options)[0, ids.shape[1] :].tolist()


def by_ctranslate2():
    words = tokenizer.convert_ids_to_tokens(ids[0])
    (found,) = generator.generate_batch(
        [words], min_length=TOKENS, max_length=TOKENS, sampling_topk=1, include_prompt_in_result=False
    )
    return found.sequences_ids[0]


def without_end(tokens, logits):
    logits[:, ends] = -mx.inf
    return logits


def by_mlx():
    steps = generate_step(mx.array(ids[0].tolist()), mlx_model, max_tokens=TOKENS, logits_processors=[without_end])
    return [int(token) for token, _ in steps]


ways = {
    "export, transformers": lambda: by_transformers(export, logits_processor=export.text_only()),
    "plain folder, transformers": lambda: by_transformers(plain),
    "plain folder, ctranslate2": by_ctranslate2,
    "plain folder, mlx-lm": by_mlx,
}
times = {name: [] for name in ways}
texts = {name: way() for name, way in ways.items()}  # the first one of each is not timed
for turn in range(ROUNDS):
    for name in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
        begun = time.perf_counter()
        ways[name]()
        times[name].append(time.perf_counter() - begun)
base = times["export, transformers"]
for name, taken in times.items():
    ratios = [own / other for own, other in zip(base, taken)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    same = sum(a == b for a, b in zip(texts[name], texts["export, transformers"]))
    rate = TOKENS / statistics.median(taken)
    print(f"| {name} | {rate:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {same} of {TOKENS} |")
