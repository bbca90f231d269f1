"""A small corpus of every kind of document, in the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tests.tokenization.corpora import jsonl, picture

LLAVA = [
    {
        "id": "both",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this, and <image>?"},
            {"from": "gpt", "value": "A cat, a dog."},
            {"from": "human", "value": "Which is red?"},
            {"from": "gpt", "value": "None."},
        ],
    },
    {
        "id": "one",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}],
    },
    {
        "id": "none",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ],
    },
]
LLAVA_PARTS = {
    "both": [
        "user:0",
        "user:What is this, and",
        "user:1",
        "user:?",
        "assistant:A cat, a dog.",
        "user:Which is red?",
        "assistant:None.",
    ],
    "one": ["user:0", "user:What?", "assistant:That."],
    "none": ["system:Be kind.", "user:Hi", "assistant:Hello"],
}


def llava(folder: Path, as_list: bool) -> Path:
    """LLaVA's conversations, as a JSON list or as lines, beside their pictures."""
    folder.mkdir(parents=True)
    for number, name in enumerate("ab"):
        (folder / f"{name}.png").write_bytes(picture(number))
    if as_list:
        (folder / "mix.json").write_text(json.dumps(LLAVA, indent=1))
        return folder / "mix.json"
    return jsonl(folder / "mix.jsonl", LLAVA)


def finevision() -> pyarrow.Table:
    """Two conversations as FineVision has them."""
    return pyarrow.table(
        {
            "images": [[{"bytes": picture(0), "path": None}, {"bytes": picture(1), "path": None}], []],
            "texts": [
                [{"user": "Compare.", "assistant": "Alike."}, {"user": "Sure?", "assistant": "Yes."}],
                [{"user": "Hi", "assistant": "Hello"}],
            ],
        }
    )


def bagel() -> pyarrow.Table:
    """Two editing rows as BAGEL has them, the first of two steps and with alternative instructions."""
    return pyarrow.table(
        {
            "image_list": [[picture(0), picture(1), picture(2)], [picture(3), picture(4)]],
            "instruction_list": [[["make it red", "paint it red"], ["now blue"]], [["smaller"]]],
        }
    )


def in_order() -> pyarrow.Table:
    """Texts and pictures in order, null where the other stands; the last row is pictures alone."""
    images = [[None, picture(0), None, picture(1)], [picture(2), picture(3)]]
    texts = [["Once", None, "then", None], [None, None]]
    return pyarrow.table(
        {
            "images": pyarrow.array(images, pyarrow.list_(pyarrow.binary())),
            "texts": pyarrow.array(texts, pyarrow.list_(pyarrow.string())),
        }
    )


def parquet(path: Path, table: pyarrow.Table) -> Path:
    """A table as a Parquet file."""
    pyarrow.parquet.write_table(table, path, row_group_size=1)
    return path


def saved_to_disk(folder: Path, table: pyarrow.Table) -> Path:
    """A table as Hugging Face datasets' save_to_disk leaves it: Arrow streams and two JSON files."""
    folder.mkdir()
    half = -(-table.num_rows // 2)
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for number, name in enumerate(names):
        part = table.slice(number * half, half)
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder
