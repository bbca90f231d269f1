#!/usr/bin/env python
"""Benchmark of image generation at batch 1 on a CPU: this tree's export, another commit's, and the released code, in
turn.

Each is a process of its own, which waits on a pipe while another one is measured; a round measures all, in an order that
turns. All draw with the same weights, the likeliest code each time, without guidance, and must draw the same codes.
Times are processor times of one thread.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 12


def weights(name: str, file: Path) -> dict:
    """Write random weights of a model of tools/bench_generate.py -> its configuration."""
    sys.path.insert(0, str(ROOT))
    from pretrain.system.light_imports import leave_torchvision_out

    leave_torchvision_out()
    from safetensors.torch import save_model

    from tools.benchmarks.generating import build_model

    model = build_model(name)
    save_model(model, str(file))
    return model.config.to_dict()


def ours(root: Path, file: Path, values: dict, compiled: bool) -> Callable[[int], list[int]]:
    """Generation with the export classes of the tree `root`, this one or another commit's."""
    import inspect

    sys.path.insert(0, str(root))
    import torch
    from safetensors.torch import load_model

    end = "uni_x" if (root / "model/hf/modeling_uni_x.py").is_file() else "unix"  # so called until November 2026
    config = importlib.import_module(f"model.hf.configuration_{end}").UniXConfig
    known = inspect.signature(config.__init__).parameters
    model = importlib.import_module(f"model.hf.modeling_{end}").UniXForCausalLM(
        config(**{key: value for key, value in values.items() if key in known})
    )
    load_model(model, str(file))
    model.eval()
    ids = torch.tensor([[*range(1, PROMPT), values["vision_start_token_id"]]])
    options = {"guidance_scale": 1.0, "temperature": 0.0, **({"compiled": True} if compiled else {})}
    return lambda codes: model.generate_images(ids, num_codes=codes, **options)[0].tolist()


def released(root: Path, file: Path, values: dict) -> Callable[[int], list[int]]:
    """Generation with the published inference class (its transformers is 4.53.3) in its evaluation's loop: one step per
    code."""
    sys.path.insert(0, str(root))
    import accelerate  # noqa: F401  (before the next line, since it looks whether wandb is installed)

    sys.modules["wandb"] = types.ModuleType("wandb")  # imported by its training, which does not run here
    sys.modules["wandb"].__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    import torch
    from modeling.shared_func_module import UniQwen3Config
    from modeling.uni_x_qwen3 import UniQwen3ForCausalLMInference
    from safetensors.torch import load_file

    ends, layers = values["layer_kinds"].index("shared"), values["num_hidden_layers"]
    shared = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    config = UniQwen3Config(**{key: values[key] for key in shared}, attn_implementation="sdpa")
    config.num_vision_encode_layers = config.num_vision_decode_layers = ends
    config.real_text_vocab_size, config.vision_start_id = values["image_token_offset"], values["vision_start_token_id"]
    model = UniQwen3ForCausalLMInference(config).eval()
    renamed = {}
    for name, tensor in load_file(file).items():
        start, _, rest = name.partition("vision_layers.")
        if rest:
            index, rest = rest.split(".", 1)
            first = int(index) < ends
            place = int(index) - (0 if first else layers - ends)
            name = f"{start}vision_{'encode' if first else 'decode'}_layers.{place}.{rest}"
        renamed[name] = tensor
    found = model.load_state_dict(renamed, strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight", "model.embed_tokens.weight"}, (
        found
    )
    model.tie_weights()
    offset, size = values["image_token_offset"], values["codebook_size"]

    @torch.no_grad()
    def draw(codes: int) -> list[int]:
        ids = torch.tensor([[*range(1, PROMPT), values["vision_start_token_id"]]])
        mask, cache, drawn = torch.ones_like(ids).bool(), None, []
        for _ in range(codes):
            outputs = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            drawn.append(int(outputs.logits[0, -1, offset : offset + size].argmax()))
            ids = torch.tensor([[drawn[-1] + offset]])
            mask = torch.cat((mask, torch.ones_like(ids).bool()), dim=1)
        return drawn

    return draw


def emu3(values: dict) -> Callable[[int], list[int]]:
    """Generation with transformers' Emu3ForCausalLM of the same sizes, all layers shared, random weights: one step per
    code."""
    sys.path.insert(0, str(ROOT))
    from pretrain.system.light_imports import leave_torchvision_out

    leave_torchvision_out()
    import torch
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    layers = {name: values[name] for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")}
    widths = {name: values[name] for name in ("hidden_size", "intermediate_size", "vocab_size")}
    model = Emu3ForCausalLM(Emu3TextConfig(**layers, **widths, pad_token_id=0)).eval()
    offset, size = values["image_token_offset"], values["codebook_size"]

    @torch.no_grad()
    def draw(codes: int) -> list[int]:
        ids, cache, drawn = torch.tensor([[*range(1, PROMPT), values["vision_start_token_id"]]]), None, []
        for _ in range(codes):
            outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = outputs.past_key_values
            drawn.append(int(outputs.logits[0, -1, offset : offset + size].argmax()))
            ids = torch.tensor([[drawn[-1] + offset]])
        return drawn

    return draw


def work(kind: str, root: Path, file: Path, values: dict) -> None:
    """Worker loop: for each input line, a number of codes, print seconds and codes."""
    import torch

    torch.set_num_threads(1)
    if kind == "emu3":
        draw = emu3(values)
    else:
        draw = released(root, file, values) if kind == "released" else ours(root, file, values, kind == "compiled")
    for line in sys.stdin:
        begin = time.process_time()
        codes = draw(int(line))
        print(json.dumps({"seconds": time.process_time() - begin, "codes": codes}), flush=True)


def measure(workers: dict[str, subprocess.Popen], codes: int, rounds: int) -> list[dict[str, float]]:
    """Seconds per image by worker and round. Raises AssertionError if their codes differ."""

    def ask(worker: subprocess.Popen) -> dict:
        to, back = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
        to.write(f"{codes}\n")
        to.flush()
        line = back.readline()
        assert line, f"{worker.args!r} ended"
        return json.loads(line)

    names, found = list(workers), []
    for number in range(-1, rounds):  # warm-up: it compiles
        turn = names[number % len(names) :] + names[: number % len(names)]
        answers = {name: ask(workers[name]) for name in turn}
        drawn = {name: answer["codes"] for name, answer in answers.items() if name != "emu3"}  # of other weights
        assert len({tuple(one) for one in drawn.values()}) == 1, f"other codes: {drawn}"
        if number >= 0:
            found.append({name: answers[name]["seconds"] for name in names})
    return found


def main() -> int:
    """Start the workers, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/export_generation.py --model demo --against ../before --released ../Uni-X \\\n"
        "      --released-path transformers-4.53.3 --json figures.json",
    )
    add = parser.add_argument
    add("--model", default="demo", help="sizes in tools/bench_generate.py: demo or small (default: demo)")
    add("--against", type=Path, help="tree of another commit of this project")
    add("--released", type=Path, help="tree of the published code")
    add("--released-path", type=Path, help="folder with the transformers that it was written for, 4.53.3")
    add("--emu3", action="store_true", help="transformers' Emu3 class of the same sizes, too")
    add("--codes", type=int, default=64, help="codes of a picture (default: 64)")
    add("--rounds", type=int, default=15, help="rounds that are counted (default: 15)")
    add("--json", type=Path, help="file for the figures")
    add("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, root, file, values = arguments.worker
        work(kind, Path(root), Path(file), json.loads(values))
        return 0
    kinds = {"eager": ROOT, "compiled": ROOT}
    kinds |= {"before": arguments.against.resolve()} if arguments.against else {}
    kinds |= {"released": arguments.released.resolve()} if arguments.released else {}
    kinds |= {"emu3": ROOT} if arguments.emu3 else {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        values = json.dumps(weights(arguments.model, file), default=str)
        workers = {}
        for kind, root in kinds.items():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
            if kind == "released" and arguments.released_path:
                environment["PYTHONPATH"] = str(arguments.released_path.resolve())
            command = [sys.executable, "-W", "ignore", __file__, "--worker", kind, str(root), str(file), values]
            workers[kind] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
            )
        try:
            rounds = measure(workers, arguments.codes, arguments.rounds)
        finally:
            for worker in workers.values():
                cast(IO[str], worker.stdin).close()
                worker.wait()
    first = "before" if "before" in kinds else "eager"
    print(f"{arguments.model}, {arguments.codes} codes, batch 1, {len(rounds)} rounds, the same codes by all")
    print(f"| | ms a code | times as fast as {first}, median (quartiles) |\n|---|---|---|")
    for kind in kinds:
        ratios = [one[first] / one[kind] for one in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        each = statistics.median(one[kind] for one in rounds) / arguments.codes * 1e3
        print(f"| {kind} | {each:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"model": arguments.model, "codes": arguments.codes, "rounds": rounds}) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
