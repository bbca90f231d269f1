#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint: two ranks that save different numbers for one place of a tensor.
#
#   the same whole tensor name on both ranks    saved without a word: one rank's numbers are kept, the others are dropped
#   the same part (offsets and sizes equal)     the same: one rank's numbers are kept
#   parts that overlap without being equal      refused: "Failed to validate global plan"
#
# The save plan drops all but one of the equal writes before it looks for overlaps, and compares no numbers. So a wrong split of
# a tensor over ranks is found only where the parts are not equal: whoever writes a planner has to count, for each element, the
# ranks that write it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/equal_places.py" <<'PY'
import json, logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import checkpoint as dcp


class Parts(dcp.DefaultSavePlanner):
    """Each rank writes the part of "w" that it is given: rows `first` to `first + rows`."""

    def __init__(self, first, part):
        super().__init__()
        self.first, self.part = first, part

    def create_local_plan(self):
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

        offsets = torch.Size([self.first, 0])
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(offsets, self.part.shape),
            properties=TensorProperties.create_from_tensor(self.part),
            size=torch.Size([4, 2]),
        )
        item = WriteItem(MetadataIndex("w", offsets), WriteItemType.SHARD, tensor_data=data)
        self.plan = SavePlan([item], planner_data={"w": ("w",)})
        return self.plan

    def resolve_data(self, item):
        return self.part


def save(kind, rank, path):
    numbers = torch.full((4, 2), float(rank + 1))
    if kind == "whole":
        dcp.save({"w": numbers}, checkpoint_id=path)
    elif kind == "equal parts":
        dcp.save({"w": numbers}, checkpoint_id=path, planner=Parts(0, numbers))
    else:
        dcp.save({"w": numbers}, checkpoint_id=path, planner=Parts(rank, numbers[:3].clone()))


def run(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in ("whole", "equal parts", "overlapping parts"):
        path = f"{folder}/{kind.replace(' ', '-')}"
        try:
            save(kind, rank, path)
            read = {"w": torch.zeros(4, 2)}
            dcp.load(read, checkpoint_id=path)
            found[kind] = sorted(set(read["w"].flatten().tolist()))
        except (Exception, dcp.api.CheckpointException) as error:
            found[kind] = "refused: " + ("validate" if "alidate" in str(error) else str(error)[:200])
    if rank == 0:
        print(json.dumps(found))
        same = found["whole"] in ([1.0], [2.0]) and found["equal parts"] in ([1.0], [2.0])
        same = same and found["overlapping parts"] == "refused: validate"
        print("as described above" if same else "changed")
        sys.stdout.flush()
        dist.destroy_process_group()
        sys.exit(0 if same else 1)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run, args=(sys.argv[1],), nprocs=2)
PY
"$folder/venv/bin/python" "$folder/equal_places.py" "$folder"
