"""Training steps on a GPU: peak rates, exactness, time, memory, host synchronizations, kernels."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

from tools.benchmarks.gpu.setting import NotRun, Setting, median_seconds, wait

LR = 1e-4
KINDS = ("separated", "mot", "moe_hard", "shared")
BOUNDS = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 1e-1)}  # of losses and of the gradient's norm, relative to float64
READS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


KERNELS = {
    "torch": {},
    "transformer_engine": {"kernels": "transformer_engine"},
    "transformer_engine, FP8 delayed": {"kernels": "transformer_engine", "fp8": "delayed"},
    "transformer_engine, FP8 current": {"kernels": "transformer_engine", "fp8": "current"},
}


def engine_of(config, precision: str, tokens: int, **choice):
    """A Megatron engine with random weights, as in training; `choice`: its kernels."""
    from pretrain.config import OptimSection
    from pretrain.engines.megatron import MegatronEngine

    return MegatronEngine(config, OptimSection(lr=LR), precision, tokens, seed=0, **choice)


def ceilings(setting: Setting) -> dict:
    """Peak rates of the device: matrix products (of random numbers) and a copy."""
    import torch

    side, size = (8192, 1 << 30) if setting.gpu else (256, 1 << 20)
    dtype = torch.bfloat16 if setting.gpu else torch.float32
    a, b = (torch.randn(side, side, dtype=dtype, device=setting.device) for _ in range(2))
    _, product, _ = median_seconds(lambda: a @ b, setting.device, 5 * setting.repeats)
    source = torch.empty(size, dtype=torch.uint8, device=setting.device).random_(0, 255)
    target = torch.empty_like(source)
    _, copy, _ = median_seconds(lambda: target.copy_(source), setting.device, 5 * setting.repeats)
    return {
        "product": f"{side} cubed, {str(dtype)[6:]}",
        "tflops": round(2 * side**3 / product / 1e12, 2),
        "copy_gb_per_s": round(2 * size / copy / 1e9, 1),
    }


def exactness(setting: Setting) -> dict:
    """Loss and gradient norm of every layer kind, against the Hugging Face model in float64 on the CPU."""
    import torch

    from model.config import layer_kinds
    from pretrain.sample_images import hugging_face_model
    from tools.benchmarks import cases

    found = {}
    for kind in KINDS:
        config = cases.uni_x_config("tiny")
        ends = (1, 1) if kind == "separated" else (0, 0)
        every = 0 if kind in ("separated", "shared") else 1
        kinds = layer_kinds(config.num_hidden_layers, *ends, kind, every)
        config = dataclasses.replace(config, layer_kinds=kinds)
        row = cases.long_row(config, 64).row
        ids, labels = torch.tensor(cases.balanced_document(config, 64)[0]), None
        for precision in BOUNDS:
            engine = engine_of(config, precision, len(row.ids))
            reference = hugging_face_model(config, [(name, weight.double()) for name, weight in engine.weights()])
            logits = reference(input_ids=ids[None]).logits[0, :-1]
            labels = ids[1:]
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            gradients = [weight.grad for weight in reference.parameters() if weight.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
            figures = engine.train_step([row], 0.0)
            loss_off = abs(figures.means()["loss"] / loss.item() - 1)
            norm_off = abs(figures.grad_norm / norm.item() - 1)
            within = loss_off <= BOUNDS[precision][0] and norm_off <= BOUNDS[precision][1]
            found[f"{kind} {precision}"] = {"loss_off": loss_off, "norm_off": norm_off, "within": within}
            del engine
    return found


def steps(setting: Setting, peak_tflops: float) -> dict:
    """Time, tokens per second, share of the measured peak and memory of a step, by sequence length and precision."""
    import torch

    from pretrain.flops import row_flops
    from tools.benchmarks import cases

    config, found = cases.uni_x_config(setting.model), {}
    for precision in setting.precisions:
        for tokens in setting.tokens:
            row = cases.long_row(config, tokens).row
            clear(setting)  # free the previous engine
            engine = engine_of(config, precision, tokens)
            least, median, most = median_seconds(lambda: engine.train_step([row], LR), setting.device, setting.repeats)  # noqa: B023
            flops = row_flops(config, row.lengths, len(row.targets)).training
            figures = {
                "seconds": [round(value, 5) for value in (least, median, most)],
                "tokens_per_s": round(tokens / median, 1),
                "tflops": round(flops / median / 1e12, 5),
                "layers": config.num_hidden_layers,
            }
            if setting.gpu:
                figures["of_measured_peak"] = round(flops / median / 1e12 / peak_tflops, 4)
                figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            found[f"{precision} {tokens}"] = figures
            engine = None
    return found


def host_reads(setting: Setting) -> dict:
    """Host synchronizations of one step, by operation, and the slowest kernels."""
    import torch

    from tools.benchmarks import cases

    config, tokens = cases.uni_x_config(setting.model), setting.tokens[0]
    row = cases.long_row(config, tokens).row
    clear(setting)
    engine = engine_of(config, setting.precisions[0], tokens)
    for _ in range(2):
        engine.train_step([row], LR)
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if setting.gpu else [])
    with torch.profiler.profile(activities=activities) as seen:
        engine.train_step([row], LR)
        wait(setting.device)
    averages = seen.key_averages()
    counts = {event.key: event.count for event in averages}
    copies = sum(count for name, count in counts.items() if name.startswith("Memcpy DtoH"))
    time_of = "self_device_time_total" if setting.gpu else "self_cpu_time_total"
    longest = sorted(averages, key=lambda event: -getattr(event, time_of))[:10]
    whole = sum(getattr(event, time_of) for event in averages) or 1
    return {
        "reads": {name: counts.get(name, 0) for name in READS} | {"copies to the host": copies},
        "longest": [
            {"kernel": event.key[:100], "calls": event.count, "share": round(getattr(event, time_of) / whole, 4)}
            for event in longest
        ],
    }


def deterministic(setting: Setting) -> dict:
    """Cost of `run.deterministic`: steps with and without it in turn, as ratios of neighbours."""
    import torch

    from tools.benchmarks import cases

    config, tokens = cases.uni_x_config(setting.model), setting.tokens[0]
    row = cases.long_row(config, tokens).row
    clear(setting)
    engine = engine_of(config, setting.precisions[0], tokens)
    ratios = []
    try:
        for _ in range(3):
            seconds = []
            for on in (False, True):
                torch.use_deterministic_algorithms(on)
                seconds.append(median_seconds(lambda: engine.train_step([row], LR), setting.device, setting.repeats)[1])
            ratios.append(round(seconds[1] / seconds[0], 4))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"times_as_long": sorted(ratios)}


def kernels(setting: Setting) -> dict:
    """Steps with torch's kernels and with transformer-engine's, bf16 and FP8, in turn, from the same weights and
    row."""
    import importlib.util

    from model.kernels import unloadable
    from tools.benchmarks import cases

    if importlib.util.find_spec("transformer_engine") is None:
        raise NotRun("transformer-engine is not installed: torch's kernels are all that was measured")
    if not setting.gpu:
        raise NotRun("transformer-engine's kernels need a GPU")
    if why := unloadable():
        raise NotRun(f"transformer-engine does not load ({why[:120]})")
    config, tokens = cases.uni_x_config(setting.model), setting.tokens[0]
    found: dict[str, dict] = {}
    row, first = cases.long_row(config, tokens).row, None
    for name, choice in KERNELS.items():
        clear(setting)
        try:
            engine = engine_of(config, "bf16", tokens, **choice)
            loss = engine.train_step([row], 0.0).means()["loss"]
            least, median, most = median_seconds(lambda: engine.train_step([row], LR), setting.device, setting.repeats)  # noqa: B023
        except Exception as error:  # a failing choice does not affect the others
            found[name] = {"not run": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}
            continue
        first = loss if first is None else first
        found[name] = {
            "seconds": [round(value, 5) for value in (least, median, most)],
            "loss_off": abs(loss / first - 1),
        }
        engine = None
    return found


def clear(setting: Setting) -> None:
    """Free the memory of the section before, and reset peak counting."""
    gc.collect()
    if setting.gpu:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


TURNS = ("other", "own", "own", "other")
"""Of two checkouts: what becomes slower or faster meanwhile is the same for both."""


def against(setting: Setting, other: Path, own: Path, turns: tuple[str, ...] = TURNS) -> dict:
    """Steps of another checkout and of this one in turn, each in its own process: ratio own over other, by tokens."""
    import json
    import statistics
    import subprocess
    import sys

    if not (other / "tools/bench_step.py").is_file():
        raise NotRun(f"{other} is no checkout of this project")
    worker = f"import runpy; runpy.run_path({str(Path(__file__).with_name('step_worker.py'))!r})['main']()"
    seconds: dict[str, dict[str, list[float]]] = {"own": {}, "other": {}}
    memory: dict[str, dict[str, float]] = {"own": {}, "other": {}}
    for name in turns:
        words = [
            sys.executable,
            "-c",
            worker,
            str(own if name == "own" else other),
            setting.device,
            setting.model,
            setting.precisions[0],
            str(setting.repeats),
            *map(str, setting.tokens),
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise NotRun(f"{name}: {(done.stderr.strip().splitlines() or ['ended'])[-1][:200]}")
        for tokens, measured in json.loads(done.stdout.splitlines()[-1]).items():
            seconds[name].setdefault(tokens, []).append(measured["seconds"])
            memory[name][tokens] = measured["peak_gib"]
    found = {}
    for tokens, ours in seconds["own"].items():
        ratios = sorted(a / b for a, b in zip(seconds["other"][tokens], ours))
        found[tokens] = {
            "times_faster": round(statistics.median(ratios), 4),
            "range": [round(value, 4) for value in ratios],
            "peak_gib": [memory["other"][tokens], memory["own"][tokens]],
        }
    return found
