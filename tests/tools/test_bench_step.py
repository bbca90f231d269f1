"""What the step benchmark counts, builds and prints. Times are never asserted on."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import model.loss
from model.layer_kinds import SEPARATED, SHARED
from model.vocabulary import IGNORED
from pretrain import runtime
from pretrain.config import OptimSection
from pretrain.engines.megatron import MegatronEngine
from pretrain.flops import RowFlops, causal_pairs, layer_weights, row_flops
from pretrain.system.errors import UserError
from tests.model.tiny_hf import document
from tests.model.tiny_training import routing_of, row_of, training_config, training_model
from tools import bench_step
from tools.benchmarks import cases, memory, paired, parts, tables

CONFIG = cases.uni_x_config("tiny")


def tiny_engine(config=CONFIG, precision: str = "fp32") -> MegatronEngine:
    runtime.start_distributed(0)
    return MegatronEngine(config, OptimSection(lr=1e-3), precision, 64, seed=0)


def test_products_of_the_flop_count_are_those_that_torch_counts():
    """Without attention, whose short form computes the hidden half too: that one is counted apart."""
    config = training_config()
    row = row_of([document([5, 16, 3]), document([9])], config, 48, multiple=4)
    counter = FlopCounterMode(display=False)
    with counter:
        losses, _ = training_model(config).train()(row.ids, row.labels, row.targets, routing_of(row, config))
        losses.sum().backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    expected = row_flops(config, row.lengths, len(row.targets))
    products = 3 * (expected.separated_products + expected.shared_products + expected.head)
    assert counted["aten.mm"] == products
    squares = sum(
        slots * slots
        for name, layers in (("document", 2), ("text", 2), ("vision", 2))
        for slots in computed_lengths(getattr(routing_of(row, config), name))
        for _ in range(layers)
    )
    assert (
        counted["aten.bmm"] + counted["aten.baddbmm"] == 3 * 4 * config.num_attention_heads * config.head_dim * squares
    )


def computed_lengths(layout) -> list[int]:
    return [group.length for group in layout.groups for _ in range(group.documents)]


def test_causal_pairs_are_those_of_a_triangular_mask():
    lengths = [1, 5, 0, 32]
    assert causal_pairs(lengths) == sum(int(torch.ones(n, n).tril().sum()) for n in lengths)


def test_layer_weights_are_the_matrices_of_a_layer():
    config = training_config(layer_kinds=(SHARED,))
    layer = training_model(config).decoder.layers[0]
    assert layer_weights(config) == sum(p.numel() for p in layer.parameters() if p.dim() == 2)


def test_separated_layers_save_attention_across_modalities_and_nothing_else():
    config = cases.uni_x_config("small")
    lengths = {"document": [2048, 100], "text": [1024, 100], "vision": [1024, 0]}
    uni_x, shared = (row_flops(each, lengths, 7) for each in (config, cases.shared_config(config)))
    assert shared.separated_products == shared.separated_attention == 0
    assert uni_x.separated_products == uni_x.shared_products == shared.shared_products // 2
    assert uni_x.shared_attention == shared.shared_attention // 2 and uni_x.head == shared.head
    # pairs of a text and a vision token of one document, in half of the layers
    crossing = 1024 * 1024
    assert shared.forward - uni_x.forward == 2 * 4 * 2 * 128 * crossing
    assert uni_x.training == 3 * uni_x.forward


def test_the_3b_is_the_base_model_that_it_names():
    config = cases.uni_x_config("3b", layers=36)
    assert config.layer_kinds == (SEPARATED,) * 12 + (SHARED,) * 18 + (SEPARATED,) * 6
    embedding = config.vocab_size * config.hidden_size
    assert round((36 * layer_weights(config) + embedding) / 1e9, 1) == 3.1  # activated
    assert round((54 * layer_weights(config) + embedding) / 1e9, 2) == 4.49  # in all: arXiv 2509.24365


@pytest.mark.parametrize("tokens", [16, 2048, 8192, 20480])
def test_long_documents_are_half_text_half_vision_and_fill_their_row(tokens):
    config = cases.uni_x_config("small")
    row = cases.long_row(config, tokens).row
    assert len(row.ids) == tokens and row.padding == 0
    assert row.lengths == {"document": [tokens], "text": [tokens // 2], "vision": [tokens // 2]}
    assert len(row.targets) == tokens - 1
    ids = row.ids[row.to_document]
    assert torch.equal(row.labels[row.to_document][:-1], ids[1:]) and row.labels[row.to_document][-1] == IGNORED
    visual = config.vocabulary.is_visual(ids)
    assert int((visual[1:] != visual[:-1]).sum()) == 2 * -(-tokens // 2 // cases.STRETCH)  # they take turns


def test_caption_rows_hold_whole_pictures_in_both_directions_and_little_padding():
    config = cases.uni_x_config("small")
    row = cases.caption_row(config, (32, 32), 5).row
    pictures = [seen for seen in row.lengths["vision"] if seen == 32 * 32 + 1]
    assert len(pictures) == 5 and row.padding < 2 * cases.ROW_MULTIPLE
    assert sum(row.lengths["vision"]) % cases.ROW_MULTIPLE == sum(row.lengths["text"]) % cases.ROW_MULTIPLE == 0
    labels = row.labels[row.targets]
    assert int(config.vocabulary.is_code(labels).sum()) == 4 * 1024  # the fifth picture is captioned, not drawn
    again = cases.caption_row(config, (32, 32), 5).row
    assert torch.equal(row.ids, again.ids) and torch.equal(row.labels, again.labels)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rows", "a,c"], "--rows a,c"),
        (["--documents", "2k"], "--documents 2k"),
        (["--documents", "100", "--model", "tiny"], "--documents 100"),
        (["--layers", "2"], "--layers 2"),
        (["--steps", "0"], "--steps 0"),
        (["--budget", "nan"], "--budget nan"),
        (["--threads", "100000"], "--threads 100000"),
        (["--json", "tools"], "--json tools"),
        (["--device", "cuda"], "--device cuda"),
    ],
)
def test_wrong_flags_are_named(monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", ["bench_step.py", *words])
    with pytest.raises(UserError) as caught:
        bench_step.main()
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_models_take_turns_and_pairs_keep_their_members_together():
    order, numbers = [], count()

    def step(name):
        order.append(name)
        return name, next(numbers)

    pairs = paired.paired_steps(lambda: step("A"), lambda: step("B"), pairs=4, budget=1e9)
    assert "".join(order) == "ABBAABBA"
    assert pairs == [(("A", 0), ("B", 1)), (("A", 3), ("B", 2)), (("A", 4), ("B", 5)), (("A", 7), ("B", 6))]
    assert len(paired.paired_steps(lambda: step("A"), lambda: step("B"), pairs=100, budget=0.0)) == 2


def test_calibrated_ratio_takes_off_what_separated_layers_save():
    slices = paired.SliceSeconds(
        attention={"document": 8.0, "text": 2.0, "vision": 1.0}, products={"document": 3.0, "text": 2.0, "vision": 1.5}
    )
    config = cases.uni_x_config("tiny")  # two of four layers are separated
    assert paired.calibrated_ratio(config, slices, shared_seconds=50.0) == pytest.approx(1 - 2 * (5.0 - 0.5) / 50.0)


def test_a_timed_step_is_a_training_step():
    row = cases.long_row(CONFIG, 64).row
    plain, timed = tiny_engine(), tiny_engine()
    plain.train_step([row], paired.LR)
    paired.timed_step(timed, row)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain.weights(), timed.weights(), strict=True))
    assert "_run" not in vars(timed)


@pytest.mark.parametrize("at_once", [2**26, 16 * 768], ids=["whole", "chunks"])
def test_marks_change_nothing_and_miss_nothing(monkeypatch, at_once):
    """The weights after a marked step are those of a plain one, and every part gets time."""
    monkeypatch.setattr(model.loss, "LOGITS_AT_ONCE_CPU", at_once)
    row = cases.long_row(CONFIG, 64).row
    plain, watched = tiny_engine(), tiny_engine()
    for _ in range(2):
        plain.train_step([row], paired.LR)
    seconds = parts.part_seconds(watched, row)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain.weights(), watched.weights(), strict=True))
    assert tuple(seconds) == parts.PARTS and all(spent > 0 for spent in seconds.values())
    shared = parts.part_seconds(tiny_engine(cases.shared_config(CONFIG)), row)
    assert shared["separated"] == shared["permute"] == 0 and shared["shared"] > 0


def test_marks_lie_between_the_parts_in_the_order_of_the_step(monkeypatch):
    row = cases.long_row(CONFIG, 64).row
    passed = []
    monkeypatch.setattr(parts.StopWatch, "stop", lambda self, part: passed.append(part))
    engine = tiny_engine()
    with parts.marked(engine, parts.StopWatch(engine.device)):
        engine.train_step([row], paired.LR)
    order = [part for part, before in zip(passed, [None, *passed]) if part != before]
    forward = [
        "optimizer",
        "tables",
        "embedding",
        "separated",
        "shared",
        "permute",
        "shared",
        "separated",
        "permute",
        "separated",
        "head",
    ]
    backward = ["head", "separated", "permute", "separated", "shared", "permute", "shared", "separated", "embedding"]
    assert order == forward + backward[1:]  # the head makes its gradient with its losses


def test_logits_of_a_long_row_never_exist_whole():
    """With the chunks of training, and a row whose logits would not fit one of them; forward and backward."""
    config = training_config(vocab_size=65_600, image_token_offset=65_000)
    tokens = 2048
    runtime.start_distributed(0)
    row = cases.long_row(config, tokens).row
    most = model.loss.LOGITS_AT_ONCE_CPU // config.vocab_size
    assert 0 < most < tokens - 1
    figures = memory.measure(lambda: MegatronEngine(config, OptimSection(lr=0.0), "fp32", tokens, 0), row)
    assert figures.logits_tokens == most
    chunk = 4 * most * config.vocab_size
    assert chunk <= figures.logits_bytes <= 2 * chunk  # the logits become their gradient
    assert figures.logits_whole == 4 * len(row.targets) * config.vocab_size > 2 * figures.logits_bytes
    weights = sum(tensor.nbytes for tensor in training_model(config).parameters())
    assert figures.weights == figures.gradients == weights
    assert figures.peak >= figures.ready >= figures.before > 0


def test_the_watch_sees_logits_that_exist_whole():
    with memory.LogitsWatch(vocab=50) as watch:
        hidden, weight = torch.randn(30, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
        torch.nn.functional.linear(hidden, weight).float().logsumexp(-1).sum().backward()
    assert watch.most_tokens == 30 and watch.most_bytes >= 4 * 30 * 50


def step_time(forward_backward: float, whole: float) -> paired.MeasuredStepTime:
    return paired.MeasuredStepTime(*(paired.Clocks(wall=2 * spent, cpu=spent) for spent in (forward_backward, whole)))


def made_figures() -> dict:
    row = cases.long_row(CONFIG, 64).row
    pairs = [(step_time(1.0, 3.0), step_time(2.0, 4.0)), (step_time(3.0, 5.0), step_time(4.0, 5.0))]
    flops = {"uni_x": RowFlops(1, 2, 3, 4, 5), "shared": RowFlops(0, 0, 10, 10, 5)}
    seconds = dict.fromkeys(parts.PARTS, 0.5)
    return tables.case_figures("a name", row, pairs, flops, 0.8, {"uni_x": seconds, "shared": seconds}, "cpu")


def test_figures_are_medians_of_paired_ratios():
    figures = made_figures()
    assert figures["forward_backward_ratio"] == {"median": 0.625, "quarter": 0.5625, "three_quarters": 0.6875}
    assert figures["step_ratio"]["median"] == 0.875
    assert figures["flop_ratio"] == 15 / 25
    uni_x = figures["models"]["uni_x"]
    assert uni_x["step_seconds"] == 4.0 and uni_x["step_seconds_wall"] == 8.0
    assert uni_x["tokens_per_second"] == 16.0 and uni_x["flops_per_second"] == 45 / 4
    assert json.loads(json.dumps(figures)) == figures


def test_tables_say_what_was_measured_and_what_was_predicted():
    figures = [made_figures(), {**made_figures(), "case": "a much longer name"}]
    head, _, first, second = tables.ratio_table(figures)
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["a name", "64", "2", "0.625 (0.562 to 0.688)", "0.600", "+4.2%", "0.800", "-21.9%", "0.625"]
    assert len(head) == len(first) == len(second) and "a much longer name" in second
    assert "MFU" not in tables.step_table(figures, on_gpu=False)[0]
    assert "MFU" in tables.step_table(figures, on_gpu=True)[0]
    shares = tables.part_table(figures)[2]
    assert shares.count("14.29%") == len(parts.PARTS) and shares.strip(" |").endswith("3.500")


def test_the_command_measures_memory(commands, tmp_path):
    file = tmp_path / "memory.json"
    done = commands.run("tools/bench_step.py", "--model", "tiny", "--memory", "--documents", "64,256", "--json", file)
    assert done.code == 0, done.err
    found = json.loads(file.read_text("utf-8"))
    assert found["tokens"] == 256 and found["model_config"]["layer_kinds"] == [SEPARATED, SHARED]
    assert f"{found['memory']['peak'] / 2**30:6.2f} GiB  peak" in done.out
    assert f"at most {found['memory']['logits_tokens']} tokens" in done.out


def test_the_command_measures_every_case_and_writes_what_it_prints(commands, tmp_path):
    file, profile = tmp_path / "out" / "bench.json", tmp_path / "profile.txt"
    words = ["--model", "tiny", "--documents", "32,64", "--steps", "2", "--json", file, "--profile", profile]
    done = commands.run("tools/bench_step.py", *words)
    assert done.code == 0, done.err
    found = json.loads(file.read_text("utf-8"))
    assert [case["case"] for case in found["cases"]] == ["2 captioned pictures", "document of 32", "document of 64"]
    assert "bench_step.py --model tiny" in found["command"] and found["threads"] == 1
    for case in found["cases"]:
        assert case["pairs"] == 2 and f"{case['forward_backward_ratio']['median']:.3f}" in done.out
        assert f"{case['flop_ratio']:.3f}" in done.out
    for table in ("forward + backward", "whole step", "time per part"):
        assert f"| {table}" in done.out
    assert "aten::mm" in profile.read_text("utf-8")
