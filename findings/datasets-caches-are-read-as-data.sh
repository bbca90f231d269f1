#!/usr/bin/env bash
# datasets 5.2.0: caches that a saved dataset gains in its own folder are data for whoever reads its *.arrow files.
#
#   save_to_disk, load_from_disk, map      map writes cache-HASH.arrow beside data-00000-of-00001.arrow, by default
#   load_from_disk again                   6 rows, the saved ones: state.json names the files
#   load_dataset("arrow", data_files=      12 rows, without a word: the saved ones and what map once made of them
#     FOLDER/*.arrow)
#
# That is how such a folder is streamed, which load_from_disk cannot do (of the whole folder the builder takes state.json for data, and fails). So
# a corpus is trained on twice, or on rows of a map that was given up, once somebody has looked at it. Whoever reads such folders
# by their files has to ask state.json, or to leave cache-*.arrow out.
#
# Expected: that map keeps its caches elsewhere, or under another suffix. Output seen, 2026-11-30:
#   files: ['cache-*.arrow', 'data-00000-of-00001.arrow', 'dataset_info.json', 'state.json']
#   load_from_disk: 6 rows; load_dataset("arrow"): 12 rows, 6 of them of the map; streamed: 12 rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/rows.py" <<'PYTHON'
import os
import re
import sys

import datasets

datasets.disable_progress_bars()
saved = sys.argv[1]
datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(6)]}).save_to_disk(saved)
datasets.load_from_disk(saved).map(lambda row: {"text": row["text"].upper()})
files = sorted(re.sub("cache-[0-9a-f]+", "cache-*", name) for name in os.listdir(saved))
print("files:", files)
again = len(datasets.load_from_disk(saved))
read = datasets.load_dataset("arrow", data_files=f"{saved}/*.arrow", split="train")
mapped = sum(text.isupper() for text in read["text"])
streamed = len(list(datasets.load_dataset("arrow", data_files=f"{saved}/*.arrow", split="train", streaming=True)))
print(f'load_from_disk: {again} rows; load_dataset("arrow"): {len(read)} rows, {mapped} of them of the map; streamed: {streamed} rows')
assert files[0] == "cache-*.arrow" and (again, len(read), mapped, streamed) == (6, 12, 6, 12)
PYTHON
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/rows.py" "$folder/saved"
