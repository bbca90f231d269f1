"""Small prompt files in the official forms, and what the official scorers would answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 2}],
        "exclude": [{"class": "cup", "count": 3}],
        "prompt": "a photo of two cups",
    },
]
DPG = {"0": "A cabbage field.\n", "10": "Three eggplants.", "vrd4": " A red car."}
IMGEDIT = {
    "1082": {"id": "animal/1.jpg", "prompt": "Make it smooth.", "edit_type": "adjust"},
    "7": {"id": "style/2.jpg", "prompt": "Draw it in ink.", "edit_type": "style"},
    "9": {"id": "animal/1.jpg", "prompt": "Remove it.", "edit_type": "remove"},
}


def write_prompts(folder: Path, task: str) -> Path:
    """The prompt file of a task, and for edits the source pictures beside it, in `sources`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.jsonl"
    if task == "geneval":
        path.write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    elif task == "dpg":
        path = folder / "prompts"
        path.mkdir(exist_ok=True)
        for key, prompt in DPG.items():
            (path / f"{key}.txt").write_text(prompt)
    else:
        path = folder / "basic_edit.json"
        path.write_text(json.dumps(IMGEDIT))
        for number, name in enumerate(sorted({item["id"] for item in IMGEDIT.values()})):
            source = folder / "sources" / name
            source.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source)
    return path


def arguments_of(task: str, prompts: Path) -> list:
    """What the command needs for a task beside the model and the output."""
    more = ["--pictures", prompts.parent / "sources"] if task == "imgedit" else []
    return ["--task", task, "--prompts-file", prompts, *more]
