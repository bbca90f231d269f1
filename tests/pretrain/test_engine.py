"""The megatron-core engine against plain autograd, torch's own AdamW, and the Hugging Face model."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from model.config import ModelConfig
from model.layer_specs import transformer_config
from model.uni_x import UniXTrainingModel
from model.vocabulary import IGNORED
from model.weight_shapes import EMBEDDING
from pretrain import runtime
from pretrain.config import OptimSection
from pretrain.engines import StepFigures
from pretrain.engines.clock import moment
from pretrain.engines.megatron import MegatronEngine
from pretrain.engines.stages import this_device
from pretrain.row_tensors import Row
from pretrain.sample_images import hugging_face_model
from pretrain.sharded_files import write_boxes
from pretrain.system.errors import UserError
from tests.model.tiny_hf import QWEN3, document, randomise
from tests.model.tiny_training import routing_of, row_of, training_config

TOKENS = 80
DOCUMENTS = [
    [document([5]), document([3, 9, 4], 1), document([0, 9, 2, 9], 2)],
    [document([2], 3)],  # one target, in a row of padding
    [document([60], 4)],
    [document([1, 30, 0], 5), document([0, 20, 5], 6)],
]
UNCLIPPED = OptimSection(lr=0.01, weight_decay=0.1, clip_grad=0.0)


def rows_of(config: ModelConfig, documents=DOCUMENTS) -> list[Row]:
    return [row_of(row, config, TOKENS, multiple=4) for row in documents]


def engine_of(config: ModelConfig, optim: OptimSection = UNCLIPPED, precision: str = "fp32", seed: int = 0):
    """An engine with random weights: norms away from 1 and biases away from 0, where a fault would hide."""
    runtime.start_distributed(seed)
    engine = MegatronEngine(config, optim, precision, TOKENS, seed)
    randomise(engine.stages[0], seed)
    if precision == "bf16":
        engine.optimizer.reload_model_params()
    return engine


def weights_of(engine: MegatronEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.weights()}


def plain_model(engine: MegatronEngine) -> UniXTrainingModel:
    """The same weights without wrappers, buffers or schedules around them."""
    model = UniXTrainingModel(engine.model_config, transformer_config(engine.model_config))
    model.load_state_dict({**model.state_dict(), **weights_of(engine)})
    return model


def mean_loss(model: UniXTrainingModel, rows: list[Row]) -> torch.Tensor:
    """The mean over all target tokens of all rows."""
    config = model.model_config
    outputs = [model(row.ids, row.labels, row.targets, routing_of(row, config)) for row in rows]
    return sum(losses.sum() for losses, _ in outputs) / sum(int((labels != IGNORED).sum()) for _, labels in outputs)


def gradients(engine: MegatronEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.main_grad.clone() for name, parameter in engine.stages[0].named_parameters()}


def norm(tensors) -> float:
    return torch.sqrt(sum(tensor.double().square().sum() for tensor in tensors)).item()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, **QWEN3}], ids=["tied qwen2.5", "untied qwen3"])
def test_the_gradient_is_that_of_the_mean_over_all_target_tokens(changes):
    config = training_config(**changes)
    rows = rows_of(config)
    counts = [int((row.labels != IGNORED).sum()) for row in rows]
    assert min(counts) == 1 and max(counts) > 50
    engine = engine_of(config)
    model = plain_model(engine)
    loss = mean_loss(model, rows)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    figures = engine.train_step(rows, lr=0.0)
    assert figures.means()["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert figures.grad_norm == pytest.approx(norm(expected.values()), rel=1e-5)
    found = gradients(engine)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_the_loss_of_picture_codes_counts_by_its_weight_in_the_gradient_alone():
    config = training_config()
    rows = rows_of(config)
    engine = engine_of(config, dataclasses.replace(UNCLIPPED, image_loss_weight=0.25))
    model = plain_model(engine)
    figures = [engine_of(config).train_step(rows, lr=0.0).means(), engine.train_step(rows, lr=0.0).means()]
    assert figures[0] == figures[1] and figures[0].keys() >= {"loss", "loss_text", "loss_image"}
    outputs = [model(row.ids, row.labels, row.targets, routing_of(row, config)) for row in rows]
    losses, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    code = config.vocabulary.is_code(labels)
    assert 0 < code.sum() < len(labels)
    ((losses[~code].sum() + losses[code].sum() / 4) / len(labels)).backward()
    found = gradients(engine)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            found[name],
            parameter.grad,
            atol=1e-6,
            rtol=1e-4,
            msg=lambda text: f"{name}: {text}",  # noqa: B023
        )


def plain_adamw(model: UniXTrainingModel, undecayed: str = "none") -> torch.optim.AdamW:
    """torch's own, with the matrices in its first group, but for that of this name."""
    decay = {p: p.dim() > 1 and name != undecayed for name, p in model.named_parameters()}
    groups = [[p for p in decay if decay[p]], [p for p in decay if not decay[p]]]
    assert all(groups)
    return torch.optim.AdamW([{"params": group} for group in groups])


def plain_step(
    adamw: torch.optim.AdamW, model: UniXTrainingModel, rows: list[Row], optim: OptimSection, lr: float
) -> None:
    """A step with these settings; only matrices decay."""
    adamw.zero_grad()
    mean_loss(model, rows).backward()
    for group, decay in zip(adamw.param_groups, (optim.weight_decay, 0.0), strict=True):
        group.update(lr=lr, weight_decay=decay, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    adamw.step()


def assert_close(engine: MegatronEngine, model: UniXTrainingModel) -> None:
    found = weights_of(engine)
    for name, parameter in model.named_parameters():
        close = torch.isclose(found[name], parameter.data, atol=2e-5, rtol=1e-3)
        assert close.all(), f"{name}: {(found[name] - parameter.data).abs().max()}"


def test_steps_are_those_of_adamw_and_only_matrices_decay():
    config = training_config()
    optim = OptimSection(lr=1.0, weight_decay=0.3, clip_grad=0.0, beta1=0.8, beta2=0.9, eps=1e-6)
    engine = engine_of(config, optim)
    model = plain_model(engine)
    adamw, rows = plain_adamw(model), rows_of(config)
    for lr, step_rows in ((0.01, rows[:2]), (0.002, rows[2:]), (0.005, rows)):
        plain_step(adamw, model, step_rows, optim, lr)
        engine.train_step(step_rows, lr)
    assert_close(engine, model)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_left_out_of_the_decay_when_asked(tied: bool):
    """So rows of ids that no step has stay as they were: a rare word is not forgotten between its appearances."""
    config = training_config(tie_word_embeddings=tied)
    optim = OptimSection(lr=1.0, weight_decay=0.5, clip_grad=0.0, eps=1e-6, decay_embeddings=False)
    engine, rows = engine_of(config, optim), rows_of(config)
    model, before = plain_model(engine), weights_of(engine)[EMBEDDING]
    adamw = plain_adamw(model, EMBEDDING)
    for _ in range(2):
        plain_step(adamw, model, rows, optim, 0.01)
        engine.train_step(rows, 0.01)
    assert_close(engine, model)
    unseen = sorted(set(range(config.vocab_size)) - set(torch.cat([row.ids for row in rows]).tolist()))
    if not tied:
        assert unseen and torch.equal(weights_of(engine)[EMBEDDING][unseen], before[unseen])


def test_a_gradient_over_the_limit_is_scaled_to_it_and_reported_as_it_was():
    config = training_config()
    rows = rows_of(config)
    free, clipped = engine_of(config), engine_of(config, dataclasses.replace(UNCLIPPED, clip_grad=0.25))
    before = free.train_step(rows, 0.0).grad_norm
    assert before > 0.5 and clipped.train_step(rows, 0.0).grad_norm == before
    assert norm(gradients(clipped).values()) == pytest.approx(0.25, rel=1e-4)
    loose = engine_of(config, dataclasses.replace(UNCLIPPED, clip_grad=10 * before))
    loose.train_step(rows, 0.0)
    assert all(torch.equal(gradient, gradients(free)[name]) for name, gradient in gradients(loose).items())


def test_losses_are_those_of_the_hugging_face_model_by_modality():
    config = training_config()
    engine = engine_of(config)
    reference = hugging_face_model(config, engine.weights())
    sums, counts = {False: 0.0, True: 0.0}, {False: 0, True: 0}
    for ids in (torch.tensor(ids) for row in DOCUMENTS for ids in row):
        with torch.no_grad():
            logits = reference(input_ids=ids[None]).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        for is_code in (False, True):
            chosen = config.vocabulary.is_code(ids[1:]) == is_code
            sums[is_code] += losses[chosen].sum().item()
            counts[is_code] += int(chosen.sum())
    figures = engine.evaluate(rows_of(config))
    assert (figures.tokens_text, figures.tokens_image) == (counts[False], counts[True])
    assert min(counts.values()) > 50
    assert figures.loss_text == pytest.approx(sums[False], rel=1e-6)
    assert figures.loss_image == pytest.approx(sums[True], rel=1e-6)
    means = figures.means()
    assert means["loss"] == pytest.approx((sums[False] + sums[True]) / sum(counts.values()), rel=1e-6)
    assert means["loss_image"] == pytest.approx(sums[True] / counts[True], rel=1e-6)


def test_measuring_changes_nothing_and_gives_the_losses_of_the_next_step():
    config = training_config()
    rows = rows_of(config)
    engine, untouched = engine_of(config), engine_of(config)
    measured = engine.evaluate(rows)
    assert measured == engine.evaluate(rows) and measured.grad_norm == 0.0
    stepped = engine.train_step(rows, 0.01)
    assert dataclasses.replace(stepped, grad_norm=0.0) == measured
    assert stepped == untouched.train_step(rows, 0.01)
    assert all(torch.equal(tensor, weights_of(untouched)[name]) for name, tensor in engine.weights())


def test_figures_leave_out_a_modality_without_targets():
    assert StepFigures(6.0, 0.0, 4, 0).means() == {"loss": 1.5, "loss_text": 1.5}
    assert StepFigures(6.0, 2.0, 4, 4).means() == {"loss": 1.0, "loss_text": 1.5, "loss_image": 0.5}
    assert StepFigures(0.0, 0.0, 0, 0).means() == {}


def test_the_seed_decides_the_weights():
    config = training_config()

    def first_weights(seed: int) -> torch.Tensor:
        runtime.start_distributed(0)
        weights = MegatronEngine(config, UNCLIPPED, "fp32", TOKENS, seed).weights()
        return torch.cat([tensor.flatten() for _, tensor in weights])

    assert torch.equal(first_weights(1), first_weights(1)) and not torch.equal(first_weights(1), first_weights(2))


def test_bf16_is_near_fp32_and_loses_no_small_step():
    config = training_config()
    rows = rows_of(config)
    optim = dataclasses.replace(UNCLIPPED, weight_decay=0.0)
    half, full = engine_of(config, optim, "bf16"), engine_of(config, optim)
    with torch.no_grad():  # both from the same numbers
        for name, tensor in half.weights():
            dict(full.stages[0].named_parameters())[name].copy_(tensor)
    start = {name: tensor.float() for name, tensor in weights_of(half).items()}
    for step in range(20):
        a, b = half.train_step(rows, 5e-5), full.train_step(rows, 5e-5)
        assert a.means()["loss"] == pytest.approx(b.means()["loss"], rel=0.01)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=0.2)
        if step == 0:  # too small for bf16: without fp32 master weights this would happen at every step
            moved = [(tensor.float() != start[name]).float().mean() for name, tensor in half.weights()]
            assert sum(moved) / len(moved) < 0.3
    final = weights_of(full)
    travelled = sum((final[name] - start[name]).abs().sum() for name in final)
    apart = sum((tensor.float() - final[name]).abs().sum() for name, tensor in half.weights())
    assert {tensor.dtype for _, tensor in half.weights()} == {torch.bfloat16}
    assert apart < 0.25 * travelled


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_and_loaded_it_goes_on_to_the_last_bit(tmp_path, precision):
    config = training_config()
    rows = rows_of(config)
    engine, other = engine_of(config, precision=precision), engine_of(config, precision=precision, seed=1)
    for _ in range(3):
        engine.train_step(rows, 0.01)
    write_boxes(tmp_path, engine.boxes())
    other.train_step(rows[:1], 0.01)
    other.load(tmp_path, 3)
    for lr in (0.01, 0.003, 0.001):
        assert engine.train_step(rows, lr) == other.train_step(rows, lr)
    assert all(torch.equal(tensor, weights_of(other)[name]) for name, tensor in engine.weights())


def test_a_checkpoint_does_not_bring_its_optimizer_settings(tmp_path):
    """The configuration says what they are, also when a run goes on with other ones."""
    config = training_config()
    rows = rows_of(config)
    first = OptimSection(lr=0.01, weight_decay=0.1, clip_grad=0.0, eps=1e-5)
    changed = OptimSection(lr=0.01, weight_decay=0.5, clip_grad=0.0, beta1=0.5, beta2=0.7, eps=1e-3)
    before, after = engine_of(config, first), engine_of(config, changed, seed=1)
    model = plain_model(before)
    adamw = plain_adamw(model)
    plain_step(adamw, model, rows, first, 0.01)
    plain_step(adamw, model, rows, changed, 0.01)
    before.train_step(rows, 0.01)
    write_boxes(tmp_path, before.boxes())
    after.load(tmp_path, 1)
    after.train_step(rows, 0.01)
    assert_close(after, model)


@pytest.mark.parametrize(
    "changes, precision",
    [({"layer_kinds": ("separated",) * 3}, "fp32"), ({"intermediate_size": 64}, "fp32"), ({}, "bf16")],
    ids=["layers", "sizes", "precision"],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path, changes, precision):
    write_boxes(tmp_path, engine_of(training_config()).boxes())
    engine = engine_of(training_config(**changes), precision=precision, seed=1)
    before = weights_of(engine)
    with pytest.raises(UserError, match="another model or precision") as caught:
        engine.load(tmp_path, 1)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.weights())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_says_so(precision):
    config = training_config()
    engine = engine_of(config, precision=precision)
    with torch.no_grad():
        next(engine.stages[0].parameters()).fill_(float("nan"))
    figures = engine.train_step(rows_of(config), 0.01)
    assert not figures.updated and math.isnan(figures.grad_norm) and math.isnan(figures.loss_text)


def test_dropout_is_a_function_of_the_seed_and_the_row():
    config = training_config()
    rows = rows_of(config)
    for index, row in enumerate(rows):
        row.index = index
    dropping = dataclasses.replace(UNCLIPPED, dropout=0.2)

    def losses(optim: OptimSection, order: list[int], seed: int = 0) -> list[float]:
        engine = engine_of(config, optim, seed=0)
        engine.seed = seed
        torch.manual_seed(len(order))  # whatever was drawn before
        return [engine.train_step([rows[index]], lr=0.0).loss_text for index in order]

    forward = losses(dropping, [0, 1, 2, 3])
    assert losses(dropping, [3, 1, 0]) == [forward[3], forward[1], forward[0]]
    assert losses(dropping, [0], seed=1) != forward[:1] and losses(UNCLIPPED, [0]) != forward[:1]


def test_dropout_zeroes_its_share_in_training_and_nothing_when_measuring():
    config = training_config()
    rows, dropping = rows_of(config), dataclasses.replace(UNCLIPPED, dropout=0.25)
    engine, plain = engine_of(config, dropping), engine_of(config)
    assert engine.evaluate(rows) == plain.evaluate(rows)
    seen = []
    decoder = engine.stages[0].decoder
    decoder.register_forward_pre_hook(lambda _, __, given: seen.append(given["hidden_states"]), with_kwargs=True)
    decoder.layers[0].register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    engine.train_step(rows[1:2], lr=0.0)
    embedded, after_one_layer = seen
    assert (embedded == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    unchanged = (after_one_layer == embedded).float().mean().item()  # attention and feed-forward both left out
    assert unchanged == pytest.approx(0.25**2, abs=0.02)


def test_a_gpu_that_torch_knows_by_its_number_is_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert this_device() == torch.device("cuda", 1)
    moment(this_device())  # a number has no type
