"""Fine-tuning from a pretrained run, on conversations, edits and captions: exact after kills, its kinds in their shares."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy
import pytest
import torch

from pretrain import checkpoint
from pretrain.config import load_config
from pretrain.data import Data
from pretrain.process_ranks import ProcessRanks
from pretrain.sharded_files import read_whole, stored_tensors
from pretrain.tasks import TASK_NAMES
from tests.commands import CommandServer, assert_refused
from tests.pretrain.test_config import SHIPPED
from tests.pretrain.test_resume import Run, assert_same
from tests.pretrain.tiny_run import STEPS, TinyData, write_config
from tests.tokenization import kinds

KILLS = [("after_an_update", 1), ("before_publishing_a_checkpoint", 1), ("after_an_update", 3)]
FROZEN = "decoder.layers.0.text."
SHARES = (0.4, 0.35, 0.25)


@pytest.fixture(scope="module")
def overrides(tiny_data: TinyData, commands: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of conversations and of edits, a pretrained run of two steps, and a configuration that goes on from it."""
    root = tmp_path_factory.mktemp("tuning")
    inputs = {
        "conversations": [
            kinds.llava(root / "llava", as_list=True),
            kinds.parquet(root / "fine.parquet", kinds.finevision()),
        ],
        "edits": [kinds.parquet(root / "edits.parquet", kinds.bagel())],
    }
    for name, paths in inputs.items():
        done = commands.run(
            "tokenization/shard_images.py",
            "--input",
            *paths,
            "--output",
            root / name,
            "--vq",
            tiny_data.vq,
            "--tokenizer",
            tiny_data.tokenizer,
            "--workers",
            0,
        )
        assert done.code == 0, done.err
    done = commands.run("pretrain/train.py", "--config", write_config(tiny_data, root / "pretrained"), "run.steps=2")
    assert done.code == 0, done.err
    paths = [root / "conversations", root / "edits", tiny_data.train]
    sources = ", ".join(f"{{path: {path}, share: {share}}}" for path, share in zip(paths, SHARES, strict=True))
    return [
        f"run.init_from={root / 'pretrained'}",
        f"data.sources=[{sources}]",
        "data.prompt_templates=en-de-zh",
        "data.drop_instruction=0.2",
        "data.drop_source=0.2",
        "data.drop_both=0.2",
        "data.sequence_length=256",
        "optim.decay=linear",
        "optim.final_lr=0",
        f"optim.freeze=['{FROZEN}*', '*layernorm.weight']",
    ]


def test_killed_and_started_again_it_is_the_run_that_never_stopped(commands, tiny_data, tmp_path, overrides):
    reference, run = (Run(commands, tiny_data, tmp_path / name, *overrides) for name in ("reference", "run"))
    assert "starting from the weights of" in reference.finish().out
    for kill in KILLS:
        assert run.start(*kill).wait().code == -signal.SIGKILL, kill
    assert "resumed from" in run.finish().out
    assert_same(run, reference)
    start = checkpoint.folder_of(Path(overrides[0].partition("=")[2]), 2)
    tuned = checkpoint.folder_of(run.folder, STEPS)
    names = [name for name in stored_tensors(start) if not name.startswith("optimizer.")]
    before, after = (dict(read_whole(folder, names)) for folder in (start, tuned))
    frozen = {name for name in names if name.startswith(FROZEN) or name.endswith("layernorm.weight")}
    assert {name for name in names if torch.equal(before[name], after[name])} == frozen
    assert not any(name.endswith(tuple(frozen)) for name in stored_tensors(tuned) if name.startswith("optimizer."))


def test_what_was_frozen_is_part_of_going_on(commands, tiny_data, tmp_path, overrides):
    run = Run(commands, tiny_data, tmp_path / "run", *overrides, "run.steps=2", "checkpoint.every=2")
    run.finish()
    run.arguments += ["run.steps=3", "optim.freeze=[]"]
    done = run.start().wait()
    assert done.code == 2 and "set optim.freeze as it was" in done.err and done.err.count("\n") == 1
    run.arguments += ["optim.freeze=['decoder.layer.0.*']"]
    done = run.start().wait()
    assert done.code == 2 and "'decoder.layer.0.*' is the name of no weight: there are decoder.layers.0." in done.err


def test_rows_mix_the_kinds_in_their_shares_and_ask_in_all_languages(tiny_data, tmp_path, overrides):
    config = load_config(write_config(tiny_data, tmp_path / "run"), overrides)
    data = Data(config, ProcessRanks())
    tokens, tasks, index = numpy.zeros(len(SHARES)), set(), 0
    while data.train.plan.epoch_of(index) < 6:
        for piece in data.train.plan.row(index):
            tokens[piece.source] += piece.length
            tasks.add(TASK_NAMES[piece.task])
        index += 1
    assert tokens / tokens.sum() == pytest.approx(SHARES, abs=0.03)  # two edits are few
    assert tasks == set(TASK_NAMES) - {"text", "in_order"}
    assert len(data.templates.text_to_image) == 12 and list(data.warnings()) == []


def test_conversations_that_are_cut_are_told(commands, tiny_data, tmp_path, overrides):
    run = Run(
        commands,
        tiny_data,
        tmp_path / "run",
        *overrides,
        "data.sequence_length=64",
        "data.row_multiple=4",
        "run.steps=1",
        f"data.sources=[{overrides[1].partition('=[')[2].split('}')[0]}}}]",
        "data.heldout=''",
    )
    out = run.finish().out
    assert "conversations: 40.00% of its conversations are longer than a row of 64 tokens and are cut" in out


def test_sources_of_two_grids_are_refused(commands, tiny_data, tmp_path, overrides):
    """The image tokenizer is one, the pictures are of 4 x 4 codes here and of 8 x 8 there."""
    done = commands.run(
        "tokenization/shard_images.py",
        "--input",
        tiny_data.corpus / "heldout/folder",
        "--output",
        tmp_path / "large",
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
        "--image-size",
        64,
        "--workers",
        0,
    )
    assert done.code == 0, done.err
    sources = f"data.sources=[{{path: {tiny_data.train}}}, {{path: {tmp_path / 'large'}}}]"
    done = Run(commands, tiny_data, tmp_path / "run", *overrides, sources).start().wait()
    assert_refused(done, "pictures of 32 and 64 pixels a side", "--image-size")


def test_the_shipped_configurations_follow_one_another_and_are_the_published_recipe():
    configs = {path.stem: load_config(path) for path in SHIPPED}
    first, tuned, edits = (configs[name] for name in ("pretrain_3b", "sft_3b", "sft_edit_3b"))
    assert first.model == tuned.model == edits.model
    assert (tuned.run.init_from, edits.run.init_from) == (first.run.folder, tuned.run.folder)
    assert (tuned.data.tokenizer, tuned.data.vq) == (first.data.tokenizer, first.data.vq)
    assert (tuned.optim.lr, tuned.optim.decay, tuned.optim.final_lr) == (1e-5, "linear", 0)
    assert (tuned.run.steps, tuned.optim.warmup_steps, tuned.data.sequence_length) == (10_000, 1_000, 20_480)
    for config in (tuned, edits):
        assert config.optim.warmup_steps == config.run.steps / 10 and config.data.sequence_length == 20_480
        assert config.data.global_batch_size == 56 and sum(
            source.share for source in config.data.sources
        ) == pytest.approx(1)
    triple = 2 * 1026 + 30 + 20  # two pictures, an instruction, marks of turns
    seen = (
        edits.run.steps
        * edits.data.global_batch_size
        * edits.data.sequence_length
        * edits.data.sources[0].share
        / triple
        / 90_000
    )
    assert 3.5 < seen < 4.5
