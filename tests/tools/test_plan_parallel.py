"""The layout planner as users meet it: what it prints can be pasted and trains; what cannot be planned is one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.parallel import ParallelLayout
from tests.commands import CommandServer, Finished, assert_refused
from tests.parallel_world import World
from tests.pretrain import checkpoint_jobs
from tests.pretrain.tiny_run import TinyData, read_metrics, write_config
from tools.plan_parallel import command_line

SCRIPT, CONFIG = "tools/plan_parallel.py", "pretrain/configs/pretrain_3b.yaml"
SIZES = ("--gpus", 8, "--gpu-memory", 80)


def planned(commands: CommandServer, *arguments: object) -> list[str]:
    done = commands.run(SCRIPT, *arguments)
    assert done.code == 0, done.err
    return done.out.splitlines()


def test_the_report_ranks_explains_and_ends_with_overrides(commands):
    lines = planned(commands, CONFIG, *SIZES, "--top", 3)
    text = "\n".join(lines)
    assert "4.49 billion parameters, of which a token meets 3.10" in text and "the fastest 3 with the best" in text
    speeds = [float(line.split("|")[6]) for line in lines if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert len(speeds) == 3 and speeds == sorted(speeds)
    lines = planned(commands, CONFIG, *SIZES, "--all", "--top", 99)
    every = [line.split("|")[2:6] for line in lines if "optimizer |" in line]
    assert len(every) > 20 and len({tuple(cells) for cells in every}) == len(every)
    assert "num_key_value_heads 2 is not divisible by 4 tensor-parallel ranks" in text
    assert "more than 72.0 GiB on a device" in text and "1 x 1 x 8 whole optimizer" in text
    config = load_config(CONFIG, shlex.split(lines[-1]))
    assert config.parallel == load_config(CONFIG).parallel  # the shipped file says what the planner found


def test_pasted_words_mean_the_layout_whatever_the_file_says():
    for parallel in (ParallelLayout(), ParallelLayout(2, True, 2, "Ett|ttL", True, True)):
        words = shlex.split(command_line(parallel))
        assert load_config(CONFIG, ["parallel.tensor=7", "parallel.layout=EttL", *words]).parallel == parallel


MEMORY = {
    "plenty": (1.0, ["1", "2", "2", "distributed optimizer"]),
    "little": (0.00255, ["1", "2", "2", "cheap recompute, distributed optimizer"]),
    "least": (0.00185, ["2", "2", "1", "sequence, recompute, whole optimizer"]),
}


@pytest.mark.parametrize("memory", MEMORY)
def test_what_it_proposes_trains(world: World, commands, tiny_data: TinyData, tmp_path, memory):
    """A step of a tiny model on four processes, as the planner proposes for devices of this memory: three layouts."""
    gib, sizes = MEMORY[memory]
    config, run = write_config(tiny_data, tmp_path / "run"), tmp_path / "run"
    lines = planned(
        commands, config, "data.global_batch_size=4", "log.heldout_rows=4", "--gpus", 4, "--gpu-memory", gib
    )
    (best,) = [line for line in lines if line.startswith("| 1 |")]
    assert [cell.strip() for cell in best.split("|")[2:6]] == sizes
    overrides = [*shlex.split(lines[-1]), "data.global_batch_size=4", "log.heldout_rows=4", "run.steps=1"]
    found = world.run(checkpoint_jobs.train_run, 4, config=config, overrides=overrides)
    assert [code for code, _, _ in found] == [0] * 4 and "1 of 1 steps done" in found[0][1]
    assert any("train/loss" in line for line in read_metrics(run))


def test_vocabulary_is_the_given_the_files_or_the_shards(commands, tiny_data: TinyData, tmp_path):
    """Billion parameters of a model that is nothing but its vocabulary say which one was taken."""
    config = write_config(tiny_data, tmp_path / "run")
    wide = ["model.hidden_size=65536", "model.intermediate_size=1", *SIZES, "--gpu-memory", 4000]

    def rows(*arguments: object) -> float:
        (line,) = [line for line in planned(commands, config, *wide, *arguments) if "billion parameters" in line]
        return float(line.split("billion")[0].split()[-1]) * 1e9 / 65536

    manifest = json.loads((tiny_data.train / "manifest.json").read_text())
    vocabulary = manifest["tokenizer"]["vocab_size"] + manifest["vq"]["codebook_size"]
    rest = rows() - vocabulary
    assert 0 <= rest < 1500  # layers of this width, rounding
    assert rows("model.image_token_offset=50000") - rest == pytest.approx(50_064, abs=250)
    assert rows("--text-rows", 70_000, "--codes", 30_000) - rest == pytest.approx(100_000, abs=250)
    assert rows(f"data.sources=[{{path: {tmp_path}}}]") - rest == pytest.approx(151_936 + 8_192, abs=250)


def test_measured_parts_move_the_cut(commands, tiny_data: TinyData, tmp_path):
    """A file of the step benchmark is taken; where the head is said to cost more, the last stage has fewer layers.

    How long the parts take here says nothing: what is compared are files of the same form with other numbers.
    """
    measured = tmp_path / "bench.json"
    done = commands.run("tools/bench_step.py", "--model", "tiny", "--rows", "a", "--steps", 2, "--json", measured)
    assert done.code == 0, done.err
    config = write_config(tiny_data, tmp_path / "run")
    sizes = ["model.hidden_size=64", "model.intermediate_size=176", "model.head_dim=16", "model.num_hidden_layers=16"]
    arguments = [config, *sizes, "--text-rows", 512, "--codes", 256, "--gpus", 2, "--gpu-memory", 4]
    shape = ["data.global_batch_size=7"]  # a prime number of rows: data parallelism is out

    def last_stage(file: Path) -> int:
        words = shlex.split(planned(commands, *arguments, *shape, "--measured", file)[-1])
        (layout,) = [word.removeprefix("parallel.layout=") for word in words if word.startswith("parallel.layout=")]
        assert layout.count("t") == 16
        return layout.split("|")[-1].count("t")

    figures = json.loads(measured.read_text())
    seconds = figures["cases"][-1]["models"]["uni_x"]["part_seconds"]
    assert {"separated", "shared", "head", "embedding"} <= seconds.keys() and 1 <= last_stage(measured) < 16
    seconds |= dict.fromkeys(seconds, 0.0) | {"separated": 1.0, "shared": 1.0, "head": 12.0}
    (tmp_path / "heavy.json").write_text(json.dumps(figures))
    seconds["head"] = 0.0
    (tmp_path / "light.json").write_text(json.dumps(figures))
    assert last_stage(tmp_path / "heavy.json") < 4 < last_stage(tmp_path / "light.json")
    assert_refused(commands.run(SCRIPT, CONFIG, *SIZES, "--measured", measured), str(measured), "hidden_size 64")
    (tmp_path / "other.json").write_text("{}")
    assert_refused(commands.run(SCRIPT, CONFIG, *SIZES, "--measured", tmp_path / "other.json"), "bench_step.py --json")


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["absent.yaml", *SIZES], ["absent.yaml", "cannot be read"]),
        ([CONFIG, "--gpus", 0, "--gpu-memory", 80], ["--gpus 0", "at least 1"]),
        ([CONFIG, "--gpus", 8, "--gpu-memory", 0], ["--gpu-memory 0", "above 0"]),
        ([CONFIG, "--gpus", 8, "--gpu-memory", "inf"], ["--gpu-memory inf", "above 0"]),
        ([CONFIG, "--gpus", 8, "--gpu-memory", "nan"], ["--gpu-memory nan", "above 0"]),
        ([CONFIG, *SIZES, "--gpus-per-node", 0], ["--gpus-per-node 0"]),
        ([CONFIG, *SIZES, "--headroom", 1], ["--headroom 1", "share"]),
        ([CONFIG, *SIZES, "--utilisation", 0], ["--utilisation 0"]),
        ([CONFIG, *SIZES, "--codes", -1], ["--codes -1", "at least 1"]),
        ([CONFIG, *SIZES, "--codes", 0], ["--codes 0", "at least 1"]),
        ([CONFIG, *SIZES, "--text-rows", 0], ["--text-rows 0", "at least 1"]),
        ([CONFIG, *SIZES, "--codes", 10**10], ["--codes 10000000000", "at most"]),
        (
            [CONFIG, *SIZES, "--text-rows", 5, "model.image_token_offset=9"],
            ["--text-rows 5", "image_token_offset", "9"],
        ),
        ([CONFIG, *SIZES, "parallel.tensor=4"], ["parallel.tensor=4", "is chosen here", "leave it out"]),
        ([CONFIG, *SIZES, "zero.stage=2"], ["zero.stage=2", "is chosen here", "leave it out"]),
        ([CONFIG, *SIZES, "--utilisation", 0.4, "--products", 0.5], ["--products", "--utilisation", "leave one out"]),
        ([CONFIG, *SIZES, "--document", 5, 20_000], ["--document 5 20000", "data.sequence_length 10240"]),
        ([CONFIG, *SIZES, "--document", -5, 20], ["--document -5 20"]),
        ([CONFIG, *SIZES, "--measured", "absent.json"], ["absent.json", "cannot be read"]),
        ([CONFIG, *SIZES, "data.row_lenght=5"], ["data.row_lenght", "did you mean data.sequence_length"]),
        ([CONFIG, *SIZES, "model.shallow=40"], ["40 shallow", "36 layers"]),
        ([CONFIG, "--gpus", 10**9, "--gpu-memory", 80], ["--gpus 1000000000", "at most 100,000"]),
        ([CONFIG, "--gpus", 8, "--gpu-memory", 80, "--products", 2], ["--products 2", "a share of the peak"]),
        (
            [CONFIG, "--gpus", 8, "--gpu-memory", 80, "data.sequence_length=12"],
            ["data.sequence_length 12", "row_multiple"],
        ),
        ([CONFIG, "--gpus", 37, "--gpu-memory", 80], ["no layout over 37 devices", "data.global_batch_size 64"]),
    ],
)
def test_bad_input_is_one_line(commands, arguments, parts):
    assert_refused(commands.run(SCRIPT, *arguments), *parts)


def smallest(done: Finished) -> float:
    assert_refused(done, CONFIG, "nothing fits 8 x 2 GiB", "the smallest layout needs", "parallel.tensor=")
    return float(done.err.split("needs ")[1].split()[0])


def test_too_little_memory_says_the_smallest_layout_and_what_it_needs(commands):
    least = smallest(commands.run(SCRIPT, CONFIG, "--gpus", 8, "--gpu-memory", 2))
    assert planned(commands, CONFIG, "--gpus", 8, "--gpu-memory", least)
    done = commands.run(SCRIPT, CONFIG, "--gpus", 8, "--gpu-memory", least - 0.2)
    assert_refused(done, f"needs {least:.1f} GiB")


def test_what_the_planner_does_not_choose_may_be_given(commands):
    words = ("parallel.overlap=false", "parallel.gradients=bf16")
    last = planned(commands, CONFIG, *SIZES, *words)[-1]
    assert all(word in last for word in words)


def test_damaged_shards_are_named(commands, tiny_data: TinyData, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    config = write_config(tiny_data, tmp_path / "run")
    done = commands.run(SCRIPT, config, f"data.sources=[{{path: {tmp_path}}}]", *SIZES)
    assert_refused(done, str(tmp_path / "manifest.json"), "make the shards again")


@pytest.mark.parametrize("gpus", [8, 16, 64])
def test_the_tables_of_the_docs_are_what_it_prints(commands, gpus):
    lines = planned(commands, CONFIG, "--gpus", gpus, "--gpu-memory", 80, "--top", 4)
    start = next(number for number, line in enumerate(lines) if line.startswith("|   | tensor"))
    page = Path(__file__).resolve().parents[2] / "docs/parallel.md"
    assert "\n".join(lines[start : start + 6]) in page.read_text(encoding="utf-8").split(f"`--gpus {gpus} ")[1]
