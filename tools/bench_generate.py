#!/usr/bin/env python
"""The cost of drawing pictures: batches, guidance, one branch a token, and the cache, side by side in one run.

Models have random weights, since time does not depend on them. Each round measures every way once, in turn, so that
whatever else the machine does falls on all of them; ratios are taken within a round, and medians over the rounds. Times
are processor times, which other work on the machine changes little; on one thread they are wall times of an idle one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import statistics
import time

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text

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


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/bench_generate.py --model demo --rounds 3",
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="demo", help="sizes of the model and its pictures (default: demo)")
    add("--codes", type=int, default=0, help="codes of a picture (default: all of the model's grid)")
    add("--rounds", type=int, default=5, help="times that each way is measured (default: 5)")
    add("--every", type=int, default=8, help="recompute one code of this many, and multiply (default: 8)")
    add("--threads", type=int, default=1, help="torch threads (default: 1)")
    add("--json", type=Path, help="file for the figures")
    return parser.parse_args()


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
    """A Routing that computes both branches for every token and then selects, as a dense implementation does."""
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
    """Prompts [batch, s] of different lengths, padded on the left, their mask, and the unconditional prompt."""
    import torch

    from model.hf.generation_uni_x import left_pad

    start = model.config.vision_start_token_id
    rows = [[*range(1, 1 + PROMPT_TOKENS - row % 4), start] for row in range(batch)]
    return *left_pad(rows, 0), torch.tensor([5, 6, 7, start])


def draw(model, batch: int, num_codes: int, guidance: float):
    """Codes of `batch` pictures [batch, num_codes], each of its own seed."""
    import torch

    ids, mask, unconditional = prompts_of(model, batch)
    chance = [torch.Generator().manual_seed(row) for row in range(batch)]
    return model.generate_images(
        ids, mask, unconditional, num_codes=num_codes, guidance_scale=guidance, generator=chance
    )


def recompute_seconds(model, codes, every: int) -> float:
    """Seconds to draw `codes` [b, n] by a whole pass for each: one code of `every` is timed, and multiplied.

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
        if step % every != min(every, count) // 2:  # the middle one stands for all
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
    """Seconds a picture of each way, measured one after the other. Raises AssertionError if codes differ."""
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
    """Median seconds a picture of each way, and the median, least and greatest ratio to the first of them."""
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


def main() -> int:
    """Measure, print a table, write the figures."""
    arguments = parse_arguments()
    if min(arguments.rounds, arguments.every, arguments.threads) < 1 or arguments.codes < 0:
        raise UserError("--rounds, --every and --threads take at least 1, --codes at least 0: change them")
    from pretrain.system.cpu_memory import keep_freed_memory
    from pretrain.system.light_imports import leave_torchvision_out

    keep_freed_memory()
    leave_torchvision_out()
    import torch

    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.model)
    num_codes = arguments.codes or MODELS[arguments.model][-1] ** 2
    draw(model, BATCH, min(4, num_codes), GUIDANCE)  # the first call makes kernels
    rounds = [measure_round(model, num_codes, arguments.every) for _ in range(arguments.rounds)]
    found = report(rounds)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{arguments.model}: {parameters / 1e6:.1f} M parameters, {num_codes} codes a picture, "
        f"{torch.get_num_threads()} threads, {len(rounds)} rounds, all ways drew the same codes"
    )
    print("| way | s a picture | times the first (least to greatest) |\n|---|---|---|")
    for line in found.values():
        print(
            f"| {line['what']} | {line['seconds_a_picture']:.3f} | {line['times_the_first']:.2f} "
            f"({line['least']:.2f} to {line['greatest']:.2f}) |"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {"model": arguments.model, "parameters": parameters, "codes": num_codes, "ways": found}
        figures["rounds"] = rounds
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
