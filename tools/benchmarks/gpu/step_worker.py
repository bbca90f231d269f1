"""One process of a comparison: training steps of the checkout that is named first, through functions that all its
versions have.

`steps.against` runs it by its path, because everything else is to come from that checkout. The arguments: CHECKOUT cuda|cpu
MODEL PRECISION REPEATS TOKENS ...
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time


def main() -> None:
    """Print {tokens: {"seconds", "peak_gib"}} as the last line."""
    root, device, model, precision, repeats, *lengths = sys.argv[1:]
    sys.path[0] = root
    import torch

    from tools.benchmarks import cases

    held = ("tools.benchmarks.step", "tools.bench_step")  # older checkouts have it in the command
    step = importlib.import_module(next(name for name in held if importlib.util.find_spec(name)))

    arguments = argparse.Namespace(device=device, threads=torch.get_num_threads(), precision=precision)
    step.start(arguments)
    config, found = cases.uni_x_config(model), {}
    for tokens in map(int, lengths):
        row = cases.long_row(config, tokens).row
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        engine = step.engine(config, arguments, tokens)
        times = []
        for number in range(int(repeats) + 2):
            if device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            engine.train_step([row], step.OPTIMIZER_LR)
            if device == "cuda":
                torch.cuda.synchronize()
            times += [time.perf_counter() - begin] if number > 1 else []
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        found[tokens] = {"seconds": statistics.median(times), "peak_gib": round(peak, 2)}
        del engine
    print(json.dumps(found))
