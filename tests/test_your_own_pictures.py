"""docs/your-own-pictures.md, each command as it stands there, on small photographs; and the configuration that is written on the way."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.config import load_config
from tests.commands import CommandServer, assert_refused
from tests.test_readme import ROOT

PAGE = ROOT / "docs/your-own-pictures.md"
SMALLER = {  # flags that come after those of the page, and take their place
    "tokenization/train_vq.py": "--image-size 32 --steps 4 --warmup-steps 1 --batch-size 4 --codebook-size 64 --channels 16 16 16 16 --threads 1",
    "tokenization/train_tokenizer.py": "--vocab-size 300",
    "pretrain/train.py": "run.steps=4 run.threads=1 log.every=1 log.samples_every=4 log.sample_prompts=[sea] checkpoint.every=2 "
    "model.hidden_size=32 model.intermediate_size=64 model.num_attention_heads=2 model.num_key_value_heads=1 model.head_dim=16",
    "tools/generate.py": "--num-images 1",
}
SHAPES = ((64, 48), (48, 64), (96, 40), (50, 50), (40, 110))


def commands_of_the_page() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Pieces of the one photograph that matplotlib brings (U.S. Navy, public domain), and skies over hills with a sensor's noise."""
    import matplotlib

    dice, (width, height) = np.random.default_rng(seed), size
    if seed % 2:
        with Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg") as whole:
            left, top = (int(dice.integers(0, side - 2 * own)) for side, own in zip(whole.size, size, strict=True))
            return whole.convert("RGB").crop((left, top, left + 2 * width, top + 2 * height)).resize(size)
    y, x = np.mgrid[:height, :width] / max(size)
    sky = np.stack([0.3 + 0.5 * y, 0.5 + 0.3 * y, 0.9 - 0.2 * y], -1)
    hills = y > 0.3 + 0.1 * np.sin(7 * x + seed) + 0.05 * np.sin(23 * x)
    scene = np.where(hills[..., None], np.array(dice.random(3) * 0.5), sky)
    return Image.fromarray(((scene + dice.normal(0, 0.02, scene.shape)).clip(0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with photos/train and photos/heldout as the page has them, of five shapes."""
    folder = tmp_path_factory.mktemp("own")
    exif = Image.Exif()
    exif[0x0112] = 6
    for seed in range(24):
        place = folder / "photos" / ("heldout" if seed % 6 == 5 else f"train/{2019 + seed % 3}")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"p{seed:02d}.{'webp' if seed % 5 == 4 else 'jpg'}"
        photograph(seed, SHAPES[seed % 5]).save(path, quality=90, **({"exif": exif} if seed % 4 == 1 else {}))
        path.with_suffix(".txt").write_text(
            f"{'a person in uniform' if seed % 2 else 'hills under the sky'}, number {seed}\n"
        )
    return folder


@pytest.fixture(scope="module")
def walked(commands: CommandServer, photos: Path) -> dict[str, list]:
    """What each script of the page said, in the order of the page."""
    said: dict[str, list] = {}
    for words in commands_of_the_page():
        assert words[0] == "python"
        script, *arguments = words[1:]
        more = SMALLER.get(script, "").split()
        done = commands.run(script, *arguments, *more, cwd=photos)
        assert done.code == 0, f"{shlex.join(words)}\n{done.out[-1500:]}\n{done.err[-1500:]}"
        said.setdefault(script, []).append(done)
    return said


def test_the_page_ends_with_pictures_and_a_folder_to_share(walked, photos):
    work = photos / "work/photos"
    for name in (
        "look/index.html",
        "look/contact_sheet.png",
        "vq/reconstructions.png",
        "shards-look/index.html",
        "run.yaml",
        "model/README.md",
    ):
        assert (work / name).stat().st_size > 300, name
    assert list((work / "run/samples").glob("*.png")) and (work / "drawn/contact_sheet.png").is_file()
    assert Image.open(work / "drawn/0000-00.png").size == (32, 32)
    counts = [json.loads((work / f"shards/{name}/manifest.json").read_text()) for name in ("train", "heldout")]
    assert [(each["counts"]["pictures"], each["rejects"]) for each in counts] == [(20, {}), (4, {})]
    assert f"{Path('work/photos/drawn')}: 1 picture" in walked["tools/generate.py"][0].err
    assert (
        "million parameters" in walked["pretrain/train.py"][0].out and "finished" in walked["tools/watch_run.py"][0].out
    )


def test_the_written_configuration_is_complete_and_commented(walked, photos):
    path = photos / "work/photos/run.yaml"
    config = load_config(str(path), [])
    assert (config.run.folder, config.data.vq, config.data.heldout) == (
        "work/photos/run",
        "work/photos/vq",
        "work/photos/shards/heldout",
    )
    assert config.log.sample_prompts and all("number" in prompt for prompt in config.log.sample_prompts)
    assert config.run.steps >= 10 and config.data.code_noise == 0.5 and config.optim.warmup_steps < config.run.steps
    for line in path.read_text().splitlines():
        if re.match(r"  \w+:", line):
            assert "# " in line, line
    told = walked["tools/new_run.py"][0].out
    assert (
        "20 documents" in told
        and "20 pictures" in told
        and told.endswith("python pretrain/train.py --config work/photos/run.yaml\n")
    )


def new_run(commands: CommandServer, photos: Path, *more: object, output: str = "other.yaml"):
    work = "work/photos"
    return commands.run(
        "tools/new_run.py",
        "--shards",
        f"{work}/shards/train",
        "--tokenizer",
        f"{work}/tokenizer",
        "--vq",
        f"{work}/vq",
        "--folder",
        "run",
        "--output",
        output,
        *more,
        cwd=photos,
    )


def test_a_base_model_gives_its_own_section(walked, commands, photos):
    assert new_run(commands, photos, "--init-from", "work/photos/run", "--epochs", 3, output="base.yaml").code == 0
    first, second = (load_config(str(photos / name), []) for name in ("work/photos/run.yaml", "base.yaml"))
    assert second.run.init_from == "work/photos/run" and second.model.hidden_size == 32 != first.model.hidden_size
    assert second.optim.lr < first.optim.lr
    small = (
        "run.steps=2",
        "run.precision=fp32",
        "run.threads=1",
        "log.samples_every=0",
        "checkpoint.every=2",
        "data.sequence_length=256",
        "data.global_batch_size=1",
    )
    done = commands.run("pretrain/train.py", "--config", "base.yaml", *small, cwd=photos)
    assert done.code == 0 and "starting from the weights of work/photos/run" in done.out, done.err


def test_mistakes_are_one_line_and_nothing_is_written(walked, commands, photos):
    assert_refused(new_run(commands, photos, output="work/photos/run.yaml"), "run.yaml is there already", "--overwrite")
    assert_refused(new_run(commands, photos, "--vq", "nowhere"), "nowhere")
    assert_refused(new_run(commands, photos, "--shards", "photos/train"), "photos/train", "manifest.json")
    assert_refused(new_run(commands, photos, "--init-from", "photos"), "photos holds no checkpoint")
    assert_refused(new_run(commands, photos, "--tokenizer", "photos"), "photos/tokenizer.json")
    other = commands.run(
        "tokenization/shard_images.py",
        "--input",
        "photos/heldout",
        "--output",
        "other",
        "--vq",
        "openmoji-64",
        "--tokenizer",
        "work/photos/tokenizer",
        "--workers",
        0,
        cwd=photos,
    )
    assert other.code == 0, other.err
    assert_refused(
        new_run(commands, photos, "--heldout", "other"), "other: was made with another image tokenizer ('openmoji-64')"
    )
    assert not (photos / "other.yaml").exists()
    assert new_run(commands, photos, "--size", "small", "--init-from", "x").code == 2


def test_what_training_would_warn_of_is_told_when_the_configuration_is_written(walked, commands, photos):
    shards = "work/photos/shards/train"
    told = new_run(commands, photos, "--vq", "openmoji-64", "--heldout", shards, output="told.yaml")
    assert told.code == 0 and "warning: --vq is called 'openmoji-64', and the shards were made with 'vq'" in told.err
    assert "warning: --heldout is trained on too" in told.err
    held = new_run(commands, photos, "--heldout", "work/photos/shards/heldout", output="fine.yaml")
    assert held.code == 0 and held.err == ""


def test_rows_hold_the_longest_picture_and_corpora_of_all_sizes_get_a_file(tmp_path):
    import argparse

    from tools.runs.new_run import settings

    arguments = argparse.Namespace(
        size="auto", epochs=0, init_from=None, heldout=None, folder="f", tokenizer="t", vq="v", shards=["s"]
    )
    for documents, codes in ((1, 16), (100, 64), (5_000, 1024), (10**6, 1024), (10**8, 4096)):
        found = {
            "documents": documents,
            "pictures": documents,
            "tokens": documents * (codes + 50),
            "longest": codes + 20,
        }
        values = settings(arguments, found, ["a"])
        assert values["data"]["sequence_length"] >= codes + 20 + 64 and values["data"]["sequence_length"] % 64 == 0
        assert 1 <= values["data"]["global_batch_size"] <= 64 and values["run"]["steps"] >= 10
        assert values["optim"]["warmup_steps"] < values["run"]["steps"]
