"""Decoding with several KV caches, and with CUDA graphs: milliseconds per token, and whether hidden states agree."""

from __future__ import annotations

import time

from tools.benchmarks.gpu.setting import Setting, wait

STEPS = {"cuda": 64, "cpu": 4}


def decoding(setting: Setting) -> dict:
    """For each variant: least and median milliseconds per token, and the difference of hidden states to the first
    variant's.

    Ways: the cache that pictures are drawn with, whose room is reserved; transformers' growing and static ones; on a GPU the
    static one with the step as one CUDA graph (torch.compile), which launches no kernel by itself.
    """
    import torch
    from transformers.cache_utils import DynamicCache, StaticCache

    from model.hf.cache_uni_x import reserved_cache
    from model.hf.configuration_uni_x import UniXConfig
    from model.hf.modeling_uni_x import UniXForCausalLM
    from tools.benchmarks import cases

    config = cases.uni_x_config(setting.model)
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = (
            UniXForCausalLM(UniXConfig(**config.to_dict())).to(torch.bfloat16 if setting.gpu else torch.float32).eval()
        )
    count, layers = STEPS[setting.device], len(config.layer_kinds)
    start, codes = config.vision_start_token_id, config.image_token_offset
    prompt = torch.tensor([[*range(1, 13), start]], device=setting.device)
    room = prompt.shape[1] + 2 * count
    ways = {
        "reserved cache": (model.model, lambda: reserved_cache(layers, room)),
        "growing cache": (model.model, lambda: DynamicCache(config=model.config)),
        "static cache": (model.model, lambda: StaticCache(config=model.config, max_cache_len=room)),
    }
    found: dict[str, dict] = {}
    if setting.gpu:
        compiled = torch.compile(model.model, mode="reduce-overhead", dynamic=False)
        ways["static cache, CUDA graph"] = (compiled, ways["static cache"][1])
    else:
        found["static cache, CUDA graph"] = {"not run": "needs a GPU"}
    first = None
    for name, (step, make) in ways.items():
        try:
            hidden, times = _decode(model.model, step, make(), prompt, codes, count, setting)
        except Exception as error:  # a failing variant does not affect the others
            found[name] = {"not run": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}
            continue
        first = hidden if first is None else first
        times.sort()
        found[name] = {
            "ms_per_token": [round(1000 * times[0], 3), round(1000 * times[len(times) // 2], 3)],
            "off": float((hidden - first).abs().max() / first.abs().max()),
        }
    return found


def _decode(model, step, cache, prompt, code: int, count: int, setting: Setting):
    """(hidden state of the last token, seconds of each of the last `count` tokens, after as many warm-up tokens)."""
    import torch

    times, place = [], torch.tensor([prompt.shape[1]], device=setting.device)
    ids = torch.tensor([[code]], device=setting.device)
    with torch.no_grad():
        model(input_ids=prompt, cache=cache, use_cache=True)
        for number in range(2 * count):
            wait(setting.device)
            begin = time.perf_counter()
            out = step(input_ids=ids, cache=cache, cache_position=place, use_cache=True).last_hidden_state
            wait(setting.device)
            times += [time.perf_counter() - begin] if number >= count else []
            place = place + 1
    return out[0, -1].float().clone(), times
