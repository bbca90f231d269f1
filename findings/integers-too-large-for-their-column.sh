#!/usr/bin/env bash
# Token ids and image codes are stored in columns of 16 bits, since most vocabularies fit. Here 70000, an id of a vocabulary of 151,936, and
# -1, a mark of padding or of "no code", go into an unsigned column of 16 bits of seven storage libraries. Some refuse, as one would expect;
# the others store four different answers without a word: 70000 becomes 4464 (the rest of a division by 65536), 65535 (the largest), or
# null, and -1 becomes 65535, 0 or null. mosaicml-streaming refuses Python's integers and arrays of another dtype, and wraps NumPy's scalars.
#
# So an id beyond 65535 becomes another valid id: training goes on with wrong tokens. Look at the largest id before the width is chosen.
#
# Output seen, 2026-11-30:
#   numpy 2.4.6, memory map                   [4464, 65535]
#   zarr 3.1.6                                [4464, 65535]
#   mosaicml-streaming 0.13.0, NumPy scalars  [4464, 65535]
#   mosaicml-streaming 0.13.0, integers       OverflowError
#   mosaicml-streaming 0.13.0, an array       ValueError
#   h5py 3.16.0                               [65535, 0]
#   polars 2.1.0, strict=False                [None, None]
#   polars 2.1.0                              InvalidOperationError
#   pyarrow 26.0.1                            ArrowInvalid
#   datasets 5.2.0                            ArrowInvalid
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 zarr==3.1.6 h5py==3.16.0 polars==2.1.0 pyarrow==26.0.1 \
	datasets==5.2.0 pillow==12.0.0 typing-extensions==4.15.0
# Its dependencies are torch and clients of clouds; the encodings of its format need none of them, and are imported by their file.
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0
cat > "$folder/seen.py" <<'PYTHON'
import importlib.util
import os
import sys
from importlib.metadata import distribution, version

folder = sys.argv[1]
os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"] = folder, "1"

import datasets
import h5py
import numpy
import polars
import pyarrow
import zarr

datasets.disable_progress_bars()
file = distribution("mosaicml-streaming").locate_file("streaming/base/format/mds/encodings.py")
spec = importlib.util.spec_from_file_location("encodings", file)
mds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mds)
IDS = numpy.array([70000, -1])


def memory_map():
    there = numpy.lib.format.open_memmap(f"{folder}/ids.npy", "w+", dtype="uint16", shape=(2,))
    there[:] = IDS
    return there.tolist()


def in_zarr():
    there = zarr.create_array(store=f"{folder}/ids.zarr", shape=(2,), dtype="uint16")
    there[:] = IDS
    return there[:].tolist()


def in_h5py():
    with h5py.File(f"{folder}/ids.h5", "w") as there:
        return there.create_dataset("ids", data=IDS, dtype="uint16")[:].tolist()


def column(values):
    return [int(mds.mds_decode("uint16", mds.mds_encode("uint16", value))) for value in values]


def in_datasets():
    features = datasets.Features({"ids": datasets.Value("uint16")})
    return datasets.Dataset.from_dict({"ids": IDS}, features=features)["ids"][:]


for name, what, store in (
    ("numpy", ", memory map", memory_map),
    ("zarr", "", in_zarr),
    ("mosaicml-streaming", ", NumPy scalars", lambda: column(list(IDS))),
    ("mosaicml-streaming", ", integers", lambda: column(IDS.tolist())),
    ("mosaicml-streaming", ", an array", lambda: mds.mds_encode("ndarray:uint16", IDS)),
    ("h5py", "", in_h5py),
    ("polars", ", strict=False", lambda: polars.Series(IDS.tolist(), dtype=polars.UInt16, strict=False).to_list()),
    ("polars", "", lambda: polars.Series(IDS, dtype=polars.UInt16).to_list()),
    ("pyarrow", "", lambda: pyarrow.array(IDS, type=pyarrow.uint16()).to_pylist()),
    ("datasets", "", in_datasets),
):
    try:
        seen = store()
    except Exception as error:
        seen = type(error).__name__
    print(f"{f'{name} {version(name)}{what}':41} {seen}")
PYTHON
"$folder/env/bin/python" "$folder/seen.py" "$folder" | tee "$folder/seen"
sed -n 's/^#   //p' "$0" > "$folder/expected"
diff "$folder/expected" "$folder/seen" && echo "as seen before"
