#!/usr/bin/env bash
# torch 2.13.0: what a full disk looks like. A limit on the size of files stands for the disk (EFBIG instead of ENOSPC).
#
#   torch.save(tensor, open file)   RuntimeError "unexpected pos 704 vs 598": neither the reason nor a file. The OSError is its
#                                   __context__ only.
#   torch.save(tensor, path)        RuntimeError of the stream, with no OSError anywhere; half a file stands under the final name.
#   torch.distributed.checkpoint    in a process group the CheckpointException has that RuntimeError without its __context__: it
#                                   was pickled on its way through the gather, on the very rank that failed too. "No space"
#                                   is nowhere to be found.
#
# So who wants to tell a full disk apart has to catch the error where the file is written, in the storage writer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/full.py" <<'PY'
import resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from torch.distributed import checkpoint as dcp

folder, tensor = Path(sys.argv[1]), torch.zeros(100_000)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
group = torch.distributed.new_group([0])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

def causes(error):
    found = []
    while error is not None:
        found.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return found

seen = {}
try:
    with open(folder / "opened", "wb") as file:
        torch.save(tensor, file)
except RuntimeError as error:
    seen["opened"] = (causes(error), "unexpected pos" in str(error))
try:
    torch.save(tensor, folder / "named")
except RuntimeError as error:
    seen["named"] = (causes(error), (folder / "named").stat().st_size < 400_000)
try:
    dcp.save({"tensor": tensor}, storage_writer=dcp.FileSystemWriter(folder / "checkpoint"), process_group=group)
except dcp.api.CheckpointException as error:
    failure = error.failures[0][0]
    seen["checkpoint"] = (causes(failure), "too large" in str(error).lower() or "errno" in str(error).lower())
print(seen)
assert seen["opened"] == (["RuntimeError", "OSError"], True), seen
assert "OSError" not in seen["named"][0] and seen["named"][1], seen
print("as described above" if seen["checkpoint"] == (["RuntimeError"], False) else f"changed: {seen['checkpoint']}")
assert seen["checkpoint"] == (["RuntimeError"], False), seen
PY
"$folder/venv/bin/python" "$folder/full.py" "$folder"
