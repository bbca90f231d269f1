"""Faults made by hand in the modules that matter most, and whether the tests of each module see them.

    python -m tests.mutants                      all, a table at the end; not part of continuous integration
    python -m tests.mutants --only zero3,loss    groups whose names contain one of these words
    python -m tests.mutants --tree FOLDER        with the tests and sources of another checkout

Each fault is one replacement in a temporary copy of the tree, in which the group's tests run until the first fails. A fault that
no test sees is a line of the table, and the reason to write a test. Before tests are thinned out and after it, at least as many
must be caught. A process that hangs counts as a failure after two minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_TESTS = 5  # pytest's exit code
QUICK = "not processes and not commands"
HANGS = {"seconds: float = 600": "seconds: float = 120", "GRACE = 60": "GRACE = 3"}
"""In tests/parallel_world.py of the copy: how long is waited for processes of a fault that makes them wait for each other."""


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, `old`, which stands there once, becomes `new`."""

    group: str
    file: str
    old: str
    new: str


TESTS = {  # by group: where its faults must be seen
    "routing": "tests/model/test_attention.py tests/model/test_uni_x.py",
    "rows": "tests/pretrain/test_rows.py tests/pretrain/test_shapes.py",
    "loss": "tests/model/test_loss.py tests/pretrain/test_engine.py",
    "conversion": "tests/tools/test_convert_from_hf.py tests/tools/test_convert_to_hf.py "
    "tests/tools/test_convert_to_hf_output.py",
    "guidance": "tests/model/test_hf_guidance.py",
    "layouts": "tests/pretrain/test_parallel_layout.py tests/pretrain/test_parallel.py",
    "megatron": "tests/pretrain/test_engine.py tests/pretrain/test_overlap.py tests/pretrain/test_bad_steps.py "
    "tests/pretrain/test_freezing.py tests/pretrain/test_parallel.py",
    "zero3": "tests/pretrain/test_zero3.py tests/pretrain/test_bad_steps.py tests/pretrain/test_freezing.py "
    "tests/pretrain/planning/test_expected.py",
    "checkpoints": "tests/pretrain/test_tensor_boxes.py tests/pretrain/test_sharded_files.py tests/pretrain/test_checkpoint.py "
    "tests/pretrain/test_engine.py::test_saved_and_loaded_it_goes_on_to_the_last_bit tests/pretrain/test_rank_state.py "
    "tests/pretrain/test_parallel_run.py",
    "zero3 checkpoints": "tests/pretrain/test_zero3_state.py tests/pretrain/test_rank_state.py tests/pretrain/test_zero3_run.py "
    "tests/pretrain/test_zero3.py::test_no_rank_holds_the_model",
    "resume": "tests/pretrain/test_train.py::test_each_update_has_the_learning_rate_of_its_step "
    "tests/pretrain/test_trouble.py tests/pretrain/test_parallel_run.py tests/pretrain/test_resume.py",
    "again": "tests/model/test_recompute.py",
    "memory": "tests/pretrain/planning/test_memory.py tests/pretrain/planning/test_expected.py",
}

FAULTS: dict[tuple[str, str], list[tuple[str, str]]] = {  # by group and file: old text, new text
    ("routing", "model/routing.py"): [
        ("1.5 * lengths[chunks[-1][0]] + 8:", "1.5 * lengths[chunks[-1][0]] + 800:"),
        ("numpy.minimum(slot, size - 1)", "numpy.minimum(slot, size)"),
        ("keep = numpy.flatnonzero(slot < size)", "keep = numpy.flatnonzero(slot <= size)"),
        ("torch.cat((angles, angles), dim=-1)", "torch.repeat_interleave(angles, 2, dim=-1)"),
        ('"document": positions[to_document],', '"document": positions,'),
    ],
    ("routing", "model/attention.py"): [
        (".triu_(1)", ".triu_(0)"),
        ("alpha=d**-0.5", "alpha=d**-1.0"),
        ("key = rotate(key, layout.cos, layout.sin)", "key = rotate(key, layout.cos, -layout.sin)"),
    ],
    ("rows", "pretrain/row_tensors.py"): [
        ("numpy.flatnonzero(labels != IGNORED)", "numpy.flatnonzero(ids != IGNORED)"),
        ("numpy.repeat(ends - counts, counts)", "numpy.repeat(ends - counts - 1, counts)"),
        ("numpy.concatenate([numpy.flatnonzero(~is_visual), visual])", "numpy.concatenate([visual, numpy.flatnonzero(~is_visual)])"),
    ],
    ("rows", "pretrain/rows.py"): [
        ("return self.tokens - self.multiple", "return self.tokens"),
        ("stretches[:, 5] = within * capacity", "stretches[:, 5] = within * (capacity - 1)"),
        ("row = generator.permutation(rows)[row]", "row = numpy.arange(rows)[row]"),
        ("text[whether_first < self.shares.first_text] = 0", "text[whether_first > self.shares.first_text] = 0"),
    ],
    ("loss", "model/loss.py"): [
        ("own *= factor", "own *= 1.0"),
        ("labels = labels - group.rank() * logits.shape[1]", "labels = labels - (group.rank() + 1) * logits.shape[1]"),
        ("torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)", "pass"),
        ("both = torch.stack((total, of_label * ours))", "both = torch.stack((total, of_label))"),
        ("hidden[part], first=start == 0)", "hidden[part], first=True)"),
        ("make = torch.empty if len(hidden) else torch.zeros", "make = torch.empty"),
        ("return torch.mul(gradient, of_sum, out=out)", "return out.copy_(gradient)"),
        ("torch.where(ours, torch.expm1(of_label), ", "torch.where(ours, torch.exp(of_label) - 1, "),
    ],
    ("loss", "model/uni_x.py"): [
        ("torch.where(is_code, image_weight, 1.0)", "torch.where(is_code, 1.0, image_weight)"),
    ],
    ("conversion", "model/weight_names.py"): [
        ("grouped.split([queries, 1, 1], dim=1)", "grouped.flip(1).split([queries, 1, 1], dim=1)"),
        ('["mlp.gate_proj.weight", "mlp.up_proj.weight"]', '["mlp.up_proj.weight", "mlp.gate_proj.weight"]'),
        ('group = "vision_layers" if branch == "vision" else "layers"', 'group = "vision_layers" if branch == "text" else "layers"'),
        ("tensor.reshape(groups, -1, d, *tensor.shape[1:])", "tensor.reshape(-1, groups, d, *tensor.shape[1:])"),
    ],
    ("conversion", "model/starting_weights.py"): [
        ("else min(config.image_token_offset, len(old))", "else min(config.image_token_offset - 1, len(old))"),
    ],
    ("guidance", "model/hf/guidance_uni_x.py"): [
        ("(t, v - t, 1.0 - v)", "(t, 1.0 - v, v - t)"),
        ("max(1, num_codes - 1)", "max(1, num_codes)"),
        ("min(step, len(weights) - 1)", "min(step + 1, len(weights) - 1)"),
        ("text if image is None else image", "image if image is None else text"),
        ("part if weight == 1 else part * weight", "part * weight + 1e-9"),
    ],
    ("layouts", "model/routing.py"): [
        ("return ids if self.rank_major is None else ids[self.rank_major]", "return ids"),
        ("_inverse(self.rank_major)[targets]", "self.rank_major[targets]"),
        ("made.num_text = num_text // ranks", "made.num_text = num_text // ranks + 1"),
        ("self.place(rank_major[self.here], DOCUMENT)", "self.place(torch.arange(len(whole))[self.here], DOCUMENT)"),
        ('made.dropout_key = dropout_key and f"{dropout_key}:{rank}"', "made.dropout_key = None"),
        ("if self.dropout_key is not None:", "if False:"),
    ],
    ("layouts", "model/uni_x.py"): [
        ("hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)", "pass"),
        ("skip_weight_param_allocation=pre_process and config.tie_word_embeddings", "skip_weight_param_allocation=False"),
    ],
    ("layouts", "model/layer_specs.py"): [
        ('vars(self.weight)["sequence_parallel"] = config.sequence_parallel', 'vars(self.weight)["sequence_parallel"] = False'),
        ("num_text = len(heads[0])  # of all ranks", "num_text = routing.num_text"),
        ("layer_spec(config, offset + i, kernels)", "layer_spec(config, i, kernels)"),
        ("attended, hidden_states), SEPARATED_ORDER)", "attended, hidden_states), DOCUMENT)"),
    ],
    ("layouts", "model/tensor_shards.py"): [
        ("return cat([cat(halves) for halves in zip(*(part.chunk(2) for part in shards))])", "return cat(list(shards))"),
        ("return whole.chunk(ranks, dim=1)[rank]", "return whole.chunk(ranks, dim=1)[ranks - 1 - rank]"),
    ],
    ("layouts", "pretrain/engines/stages.py"): [
        ("stage.decoder.layers[int(local)].layer_number - 1", "int(local)"),
        ("continue  # a tied embedding, held by two stages", "pass"),
        ("elif name == HEAD and stage.share_embeddings_and_output_weights:", "elif False:"),
    ],
    ("layouts", "pretrain/parallel.py"): [
        ('settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}', "pass"),
    ],
    ("megatron", "pretrain/engines/megatron.py"): [
        ("mean = 1 / max(1, figures.tokens_text + figures.tokens_image)", "mean = 1 / max(1, figures.tokens_text)"),
        ("(parallel_state.get_data_parallel_group(), ", "(parallel_state.get_pipeline_model_parallel_group(), "),
        ("math.isfinite(figures.grad_norm) and sound(figures)", "sound(figures)"),
        ("mean * update.clip_factor(figures.grad_norm, self.optim.clip_grad)", "mean * update.clip_factor(norm, self.optim.clip_grad)"),
        ("grad_reduce_in_fp32=not half or parallel.gradients == \"fp32\"", "grad_reduce_in_fp32=True"),
        ("overlapping.gather_head_with_norm(stage, module)", "pass"),
        ("module.start_param_sync(force_sync=True)", "pass"),
        ("finalize_model_grads(modules, None, **keywords)  #", "pass  #"),
        ('{"wd_mult": 0.0}', '{"wd_mult": 1.0}'),
        ("disable_bucketing=number > 0,", "disable_bucketing=True,"),
    ],
    ("megatron", "pretrain/engines/update.py"): [
        ("limit / (norm + 1e-6)) if", "limit / (norm * norm + 1e-6)) if"),
        ("if param_is_not_shared(parameter) and tensor_parallel", "if tensor_parallel"),
        ("torch.distributed.all_reduce(square, group=optimizer.get_grad_stats_parallel_group())", "pass"),
    ],
    ("megatron", "pretrain/engines/overlapping.py"): [
        ("stack.enter_context(module().no_sync())", "pass"),
    ],
    ("megatron", "pretrain/engines/freezing.py"): [
        ("parameter.requires_grad_(name not in frozen)", "parameter.requires_grad_(name not in frozen or 'bias' in name)"),
        ("and not _learns(stage.embedding):", "and _learns(stage.embedding):"),
    ],
    ("megatron", "pretrain/engines/common.py"): [
        ('group["weight_decay"] = optim.weight_decay * group["wd_mult"]', 'group["weight_decay"] = optim.weight_decay'),
    ],
    ("zero3", "pretrain/engines/zero3.py"): [
        ("scale = max(1, int(tokens)) / self.group.size()", "scale = max(1, int(tokens))"),
        ("torch.distributed.all_reduce(tokens, group=self.group)", "pass"),
        ("share.reshape(-1)[self.group.rank() * cut.numel() :]", "share.reshape(-1)[(self.group.rank() ^ 1) * cut.numel() :]"),
        ('(of_heads or getattr(parameter, "sequence_parallel", False))', "of_heads"),
        ('(of_heads or getattr(parameter, "sequence_parallel", False))', 'getattr(parameter, "sequence_parallel", False)'),
        ("groups[float(decays(name, dimensions, self.optim))]", "groups[float(dimensions > 1)]"),
        ("self.engine.set_gradient_accumulation_boundary(last)", "self.engine.set_gradient_accumulation_boundary(True)"),
        ("parameter.ds_secondary_tensor = None", "pass"),
        ("total = total * math.nan", "pass"),
        ("save_memory([module], parallel)", "pass"),
        ("sums += of_row.double()", "sums = of_row.double()"),
    ],
    ("zero3", "pretrain/engines/zero3_setup.py"): [
        ('"gradient_clipping": optim.clip_grad,', '"gradient_clipping": 0.0,'),
        ('"check_grad_overflow": half}', '"check_grad_overflow": False}'),
        ('"data_types": {"grad_accum_dtype": "fp32"},', '"data_types": {"grad_accum_dtype": "bf16" if half else "fp32"},'),
        ("return ZERO_OPTIMIZATION", "return super()._do_optimizer_sanity_check(_optimizer)"),
        ("engine.destroy()", "pass"),
    ],
    ("checkpoints", "pretrain/tensor_boxes.py"): [
        ("at = (at[0], at[1] + column)", "at = (at[0], at[1])"),
        ("head = min(-(-low // row) * row, high)", "head = min(low // row * row + row, high)"),
        ("if least == rank:", "if least == 0:"),
        ('detach().to("cpu", copy=True)', 'detach().to("cpu", copy=False)'),
    ],
    ("checkpoints", "pretrain/engines/rank_state.py"): [
        ("if name == EMBEDDING and not any(stage.pre_process for stage in stages):", "if False:"),
        ("return rank == 0 or whole_shape(name, (1, 1), ranks) != (1, 1)", "return True"),
        ('tensors["master"] = main.data', 'tensors["master"] = parameter.data.float().view(-1)[: main.numel()].view(main.shape)'),
        ("torch.tensor(float(steps), device=main.device)", "torch.tensor(0.0, device=main.device)"),
        ('MOMENTS = ("exp_avg", "exp_avg_sq")', 'MOMENTS = ("exp_avg",)'),
    ],
    ("checkpoints", "pretrain/sharded_files.py"): [
        ("zip(item.dest_offsets, item.lengths)", "zip(item.storage_offsets, item.lengths)"),
        ("if part.shape == found.size:", "if True:"),
    ],
    ("checkpoints", "pretrain/checkpoint.py"): [
        ("for old in found[: max(0, place + 1 - keep)] + found[place + 1 :]:", "for old in found[: max(0, place - keep)] + found[place + 1 :]:"),
        ("(_writer_of(path) or 0) == rank", "(_writer_of(path) or 0) == 0"),
        ("files[part::parts]", "files[:0]"),
    ],
    ("zero3 checkpoints", "pretrain/engines/zero3_state.py"): [
        ("min(at + parameter.numel(), (rank + 1) * size)", "min(at + parameter.numel() - 1, (rank + 1) * size)"),
        ("count = min(size, parameter.ds_numel - start)", "count = size"),
        ("rank == 0 or whole_shape(_name(box.key), (1, 1), ranks) != (1, 1)", "True"),
        ("state[kind][stretch.place : stretch.place + count]", "state[kind][:count]"),
        ("size = len(flat) if cut else -(-elements // group.size())", "size = len(flat) if cut else elements // group.size()"),
        ("if parameter.requires_grad:\n            continue", "if True:\n            continue"),
        ("start = rank * size\n", "start = (rank ^ 1) * size\n"),
    ],
    ("zero3 checkpoints", "pretrain/engines/zero3.py"): [
        ('["step"].fill_(steps)', '["step"].fill_(0)'),
        ("self.engine.optimizer._partition_all_parameters()", "pass"),
        ("if self.dtype == torch.float32:\n            for stretch in self.held:", "if False:\n            for stretch in self.held:"),
        ("            self._forget_second_cuts()\n        else:", "        else:"),
    ],
    ("resume", "pretrain/progress.py"): [
        ("self.step + 1, self.rows + rows", "self.step + 1, self.rows + rows * figures.updated"),
        ('"left_out": [earlier.rows, self.rows]', '"left_out": [earlier.rows, self.rows - 1]'),
        ("if step > self.step - options.window]", "if step >= self.step - options.window]"),
        ("earlier, rows=self.rows,", "earlier, rows=earlier.rows,"),
        ("len(self.bad) >= options.bad_steps", "len(self.bad) > options.bad_steps"),
    ],
    ("resume", "pretrain/loop.py"): [
        ("loader = work.data.training_rows(progress.rows,", "loader = work.data.training_rows(progress.step,"),
        ("progress.step,\n        peak=optim.lr", "progress.step + 1,\n        peak=optim.lr"),
        ("progress.add(figures)", "pass"),
        ("(log.heldout_every and step % log.heldout_every == 0)", "(log.heldout_every and (step + 1) % log.heldout_every == 0)"),
        ("found = work.coordinator.largest(here)", "found = here"),
    ],
    ("again", "model/recompute.py"): [
        ("arguments[0], output", "arguments[0] * 1.0000001, output"),
        ("contexts.pop().__exit__(None, None, None)", "contexts.pop()"),
        ("made.clear()", "pass"),
        (".as_strided(*place)", ".as_strided(place[0], place[1], 0)"),
        ("recipes[type(module)](module), arguments[0], output", "recipes[type(module)](module), arguments[0], None"),
        ("layer.register_forward_hook(end, always_call=True)", "layer.register_forward_hook(end)"),
    ],
    ("memory", "pretrain/planning/memory.py"): [
        ("return 12 if half else 8", "return 12"),
        ("return 2 if half and parallel.gradients == \"bf16\" else 4", "return 2 if half else 4"),
        ("multiple = math.lcm(data_ranks, 128)", "multiple = 128"),
        ("start = _up(end, 64)", "start = end"),
        ("tied = config.tie_word_embeddings and parallel.pipeline > 1", "tied = config.tie_word_embeddings"),
        ("data_ranks > 1 and stage.embedding", "data_ranks > 1"),
        ("for name, size in reversed(sizes.items()):", "for name, size in sizes.items():"),
    ],
    ("memory", "pretrain/planning/activations.py"): [
        ("along = row.tokens // tensor if parallel.sequence else row.tokens\n    ffn", "along = row.tokens\n    ffn"),
        ("attended = (2 if on_cpu or wide else 1) * queries", "attended = queries"),
        ("elements * (8 if on_cpu and width == 2 else width)", "elements * width"),
        ("(row.tokens + config.vocab_size // parallel.tensor) * config.hidden_size", "row.tokens * config.hidden_size"),
        ("each = along * config.hidden_size * width if parallel.recompute else layer", "each = layer"),
    ],
    ("memory", "pretrain/planning/zero.py"): [
        ("padded = sum(-(-group // (2 * ranks)) * 2 * ranks for group in groups)", "padded = sum(-(-group // ranks) * ranks for group in groups)"),
        ("part = sum(-(-size // ranks) for size in sizes.values())", "part = sum(size // ranks for size in sizes.values())"),
        ("4 * (held if zero.stage == 1 else part)", "4 * part"),
    ],
}  # fmt: skip


def mutants() -> list[Mutant]:
    """All of them."""
    return [Mutant(group, file, old, new) for (group, file), pairs in FAULTS.items() for old, new in pairs]


def copy_of(tree: Path, folder: Path) -> None:
    """The tracked files of a checkout, with short waits for processes that hang."""
    names = subprocess.run(["git", "-C", str(tree), "ls-files", "-z"], capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (tree / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    world = folder / "tests/parallel_world.py"
    text = world.read_text(encoding="utf-8")
    for old, new in HANGS.items():
        assert text.count(old) == 1, f"tests/parallel_world.py: {old!r}"
        text = text.replace(old, new)
    world.write_text(text, encoding="utf-8")


def judge(folder: Path, mutant: Mutant, seconds: float, tests: str = "") -> dict:
    """Run the group's tests with the fault -> it, whether it was caught, by which test, and the time that this took."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"error: {mutant.file}: {mutant.old!r} stands there {text.count(mutant.old)} times, not once")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no"]
    command += (tests or TESTS[mutant.group]).split()
    begin = time.monotonic()
    code, said = 0, ""
    try:
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        for marks in (QUICK, f"not ({QUICK})"):
            done = subprocess.run([*command, "-m", marks], cwd=folder, capture_output=True, text=True, timeout=seconds)
            if done.returncode != NO_TESTS:
                code, said = done.returncode, done.stdout
            if code:
                break
    except subprocess.TimeoutExpired:
        code, said = None, ""
    finally:
        path.write_text(text, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", said, re.M)
    by = failed.group(1) if failed else "" if code == 0 else said[-200:] or f"no end in {seconds:.0f} s"
    return {**asdict(mutant), "caught": code not in (0, None), "by": by, "seconds": round(time.monotonic() - begin, 1)}


def main() -> int:
    """Judge the chosen faults -> 0 when all are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of groups or files, comma-separated (default: all)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to copy (default: this one)")
    parser.add_argument("--tests", default="", help="pytest's words for other tests than the group's")
    parser.add_argument("--part", default="1/1", help="the second of three parts is 2/3 (default: all)")
    parser.add_argument("--seconds", type=float, default=1500, help="for the tests of one fault (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file for the results, a JSON line each")
    parser.add_argument("--check", action="store_true", help="only see that every text stands once in its file")
    arguments = parser.parse_args()
    words = arguments.only.split(",")
    chosen = [each for each in mutants() if any(word in f"{each.group} {each.file}" for word in words)]
    part, parts = map(int, arguments.part.split("/"))
    chosen = chosen[part - 1 :: parts]
    if arguments.check:
        counts = [(arguments.tree / each.file).read_text(encoding="utf-8").count(each.old) for each in chosen]
        wrong = [f"{each.file}: {each.old!r}: {count}" for each, count in zip(chosen, counts) if count != 1]
        print("\n".join(wrong) or f"{len(chosen)} faults can be made")
        return bool(wrong)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        copy_of(arguments.tree, Path(folder))
        for mutant in chosen:
            found.append(judge(Path(folder), mutant, arguments.seconds, arguments.tests))
            last = found[-1]
            told = f"caught by {last['by']}" if last["caught"] else f"NOT CAUGHT {last['by']}"
            print(f"{last['seconds']:6.1f} s  {mutant.group}: {mutant.file}: {mutant.new!r}: {told}", flush=True)
            if arguments.output:
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(last) + "\n")
    for group in dict.fromkeys(each["group"] for each in found):
        here = [each["caught"] for each in found if each["group"] == group]
        print(f"{group}: {sum(here)} of {len(here)} caught")
    return int(not all(each["caught"] for each in found))


if __name__ == "__main__":
    sys.exit(main())
