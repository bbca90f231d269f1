#!/usr/bin/env bash
# One line of JSON with a key twice, {"caption": "first", "caption": "last"}, as a record that was edited by hand or joined by a
# program has it. RFC 8259 leaves open what it means, and libraries that read the same data sets disagree, most of them without a word:
# the last wins, the first wins, or all of the file is an error. datasets does both: a .jsonl file is an error, the same objects as a list in a
# .json file are read, and the last wins. So the caption that is trained on depends on the reader.
#
# Output seen, 2026-11-29:
#   orjson 3.13.0                 last
#   pandas 3.1.1                  last
#   webdataset 1.0.2 (.json)      last
#   datasets 5.2.0, a list        last
#   polars 2.1.0 read_ndjson      first
#   polars 2.1.0 read_json        first
#   pyarrow 26.0.1                ArrowInvalid
#   duckdb 1.5.0                  InvalidInputException
#   datasets 5.2.0, lines         DatasetGenerationError
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/seen.py" <<'PYTHON'
import io
import json
import os
import sys
import tarfile
import tempfile
from importlib.metadata import version

folder = tempfile.mkdtemp(dir=sys.argv[1])
os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"] = folder, "1"

import datasets
import duckdb
import orjson
import pandas
import polars
import pyarrow.json
import webdataset

datasets.disable_progress_bars()
line = '{"caption": "first", "caption": "last"}'
lines, listed, tar = (os.path.join(folder, name) for name in ("a.jsonl", "b.json", "c.tar"))
open(lines, "w").write('{"caption": "only"}\n' + line + "\n")
open(listed, "w").write('[{"caption": "only"}, ' + line + "]")
with tarfile.open(tar, "w") as archive:
    info = tarfile.TarInfo("a.json")
    info.size = len(line)
    archive.addfile(info, io.BytesIO(line.encode()))
readers = {
    ("orjson", ""): lambda: orjson.loads(line)["caption"],
    ("pandas", ""): lambda: pandas.read_json(lines, lines=True)["caption"][1],
    ("webdataset", " (.json)"): lambda: next(iter(webdataset.WebDataset(tar, shardshuffle=False).decode()))["json"]["caption"],
    ("datasets", ", a list"): lambda: datasets.load_dataset("json", data_files=listed, split="train", cache_dir=folder)[1]["caption"],
    ("polars", " read_ndjson"): lambda: polars.read_ndjson(lines)["caption"][1],
    ("polars", " read_json"): lambda: polars.read_json(listed)["caption"][1],
    ("pyarrow", ""): lambda: pyarrow.json.read_json(lines)["caption"][1].as_py(),
    ("duckdb", ""): lambda: duckdb.sql(f"select caption from read_json('{lines}')").fetchall()[1][0],
    ("datasets", ", lines"): lambda: datasets.load_dataset("json", data_files=lines, split="train", cache_dir=folder)[1]["caption"],
}
seen = []
for (name, more), read in readers.items():
    try:
        seen.append(read())
    except Exception as error:
        seen.append(type(error).__name__)
    print(f"{name + ' ' + version(name) + more:<30}{seen[-1]}")
assert seen == ["last"] * 4 + ["first"] * 2 + ["ArrowInvalid", "InvalidInputException", "DatasetGenerationError"], seen
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 polars==2.1.0 duckdb==1.5.0 \
    webdataset==1.0.2 orjson==3.13.0
"$folder/venv/bin/python" -W ignore "$folder/seen.py" "$folder" 2> /dev/null
