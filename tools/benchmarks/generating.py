"""Measurements of tools/bench_generate.py: batch sizes, guidance, token routing and the KV cache."""

from __future__ import annotations

import statistics
import time

MODELS = {
    # hidden, feed-forward, layers, heads, key-value heads, head size, separated at each end, text ids, codes, grid
    "demo": (128, 384, 4, 4, 2, 32, 1, 8192, 1024, 8),
    "small": (768, 2048, 12, 12, 2, 64, 4, 32768, 8192, 16),
}
BATCH, GUIDANCE, PROMPT_TOKENS = 16, 4.0, 12
WAYS = {
    "batch": f"cached, batch {BATCH}, guidance",
    "single": "cached, batch 1, guidance",
    "unguided": f"cached, batch {BATCH}, no guidance",
    "both": f"cached, batch {BATCH}, guidance, both branches on every token",
    "recompute": f"batch {BATCH}, guidance, the whole sequence again for each code",
}


def build_model(name: str):
    """A UniXForCausalLM of the named sizes, float32, on the CPU."""
    import torch

    from model.hf.configuration_uni_x import UniXConfig
    from model.hf.modeling_uni_x import UniXForCausalLM

    hidden, feed_forward, layers, heads, kv_heads, head_dim, ends, text_ids, codes, _ = MODELS[name]
    torch.manual_seed(0)
    config = UniXConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=text_ids + codes,
        image_token_offset=text_ids,
        codebook_size=codes,
        vision_start_token_id=text_ids - 2,
        vision_end_token_id=text_ids - 1,
        eos_token_id=text_ids - 3,
        layer_kinds=("separated",) * ends + ("shared",) * (layers - 2 * ends) + ("separated",) * ends,
        attention_bias=False,
        qk_norm=True,
        max_position_embeddings=2048,
    )
    return UniXForCausalLM(config).eval()


def both_branches(routing: type) -> type:
    """A Routing that computes both branches for every token and then selects, like a dense implementation."""
    import torch

    class BothBranches(routing):
        def __init__(self, visual, all_visual: bool | None = None) -> None:
            super().__init__(visual)
            self.visual = None if visual is None else visual.flatten()
            if visual is not None:
                self.branches = [0, 1]

        def split(self, x) -> list:
            return [x] * len(self.branches)

        def merge(self, parts: list):
            if self.visual is None:
                return parts[0]
            return torch.where(self.visual.view(-1, *[1] * (parts[0].ndim - 1)), parts[1], parts[0])

    return BothBranches


def prompts_of(model, batch: int):
    """Prompts [batch, s] of different lengths, left-padded, their mask, and the unconditional prompt."""
    import torch

    from model.hf.generation_uni_x import left_pad

    start = model.config.vision_start_token_id
    rows = [[*range(1, 1 + PROMPT_TOKENS - row % 4), start] for row in range(batch)]
    return *left_pad(rows, 0), torch.tensor([5, 6, 7, start])


def draw(model, batch: int, num_codes: int, guidance: float):
    """Codes of `batch` images [batch, num_codes], each with its own seed."""
    import torch

    ids, mask, unconditional = prompts_of(model, batch)
    chance = [torch.Generator().manual_seed(row) for row in range(batch)]
    return model.generate_images(
        ids, mask, unconditional, num_codes=num_codes, guidance_scale=guidance, generator=chance
    )


def recompute_seconds(model, codes, every: int) -> float:
    """Seconds without a KV cache to generate `codes` [b, n], a full pass each: one code of `every` is timed, and
    multiplied.

    Raises AssertionError if the passes lead to other codes than the cache did.
    """
    import torch

    from model.hf.generation_uni_x import _joined
    from model.hf.guidance_uni_x import combine, weights_of
    from model.hf.sampling_uni_x import exponential

    batch, count = codes.shape
    ids, mask, unconditional = prompts_of(model, batch)
    ids, mask = _joined([(ids, mask), (unconditional.view(1, -1).expand(batch, -1), None)])
    offset, size = model.config.image_token_offset, model.config.codebook_size
    chance = [torch.Generator().manual_seed(row) for row in range(batch)]
    (weights,) = weights_of([GUIDANCE], None)
    seconds = 0.0
    for step in range(count):
        variates = torch.stack([exponential((size,), generator) for generator in chance])
        if step % every != min(every, count) // 2:  # the middle one is representative
            continue
        begin = time.process_time()
        drawn = (codes[:, :step] + offset).repeat(2, 1)
        whole, seen = torch.cat((ids, drawn), 1), torch.cat((mask, torch.ones_like(drawn)), 1)
        with torch.no_grad():
            hidden = model.model(input_ids=whole, attention_mask=seen, use_cache=False).last_hidden_state[:, -1]
            both = torch.nn.functional.linear(hidden, model.lm_head.weight[offset : offset + size]).chunk(2)
            logits = combine(both, (weights[0], weights[2]))
        found = (logits.softmax(-1) / variates).argmax(-1)
        seconds += (time.process_time() - begin) * min(every, count - step + every // 2)
        assert torch.equal(found, codes[:, step]), "the cache and whole passes drew other codes"
    return seconds


def measure_round(model, num_codes: int, every: int) -> dict[str, float]:
    """Seconds per image of each variant, measured in turn. Raises AssertionError if codes differ."""
    from unittest import mock

    import torch

    from model.hf import modeling_uni_x

    def timed(batch: int, guidance: float):
        begin = time.process_time()
        codes = draw(model, batch, num_codes, guidance)
        return codes, (time.process_time() - begin) / batch

    codes, batch = timed(BATCH, GUIDANCE)
    alone, single = timed(1, GUIDANCE)
    _, unguided = timed(BATCH, 1.0)
    with mock.patch.object(modeling_uni_x, "Routing", both_branches(modeling_uni_x.Routing)):
        dense, both = timed(BATCH, GUIDANCE)
    assert torch.equal(alone[0], codes[0]) and torch.equal(dense, codes), "ways drew other codes"
    recompute = recompute_seconds(model, codes, every) / BATCH
    return {"batch": batch, "single": single, "unguided": unguided, "both": both, "recompute": recompute}


def report(rounds: list[dict[str, float]]) -> dict:
    """Median seconds per image of each variant, and median, least and greatest ratio to the first."""
    found = {}
    for way, words in WAYS.items():
        ratios = [one[way] / one["batch"] for one in rounds]
        found[way] = {
            "what": words,
            "seconds_a_picture": statistics.median(one[way] for one in rounds),
            "times_the_first": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
        }
    return found
