"""Work plan of a worker, without a coordinator: its share of the input files, and the missing parts of each.

File i of the listing belongs to worker i modulo the number of workers. Finished parts are found by their names in the
output folder, so a job can be killed and restarted with another number of workers at any time. Two workers on one file,
because an old job still runs, write the same bytes, and the first to publish a part wins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.system.errors import UserError
from tokenization.parts import (
    DamagedPart,
    FileRecord,
    PartRecord,
    check_part,
    contents_of,
    file_record_path,
    part_folder,
    read_file_record,
    read_part_record,
)
from tokenization.pipeline import Chunk, chunks_of
from tokenization.readers import Corpus, CorpusFile, DamagedFile, OpenFile, damaged


@dataclass(frozen=True)
class WorkFile:
    """A file of the input, numbered over all corpora in the order of the listing."""

    number: int
    corpus: Corpus
    file: CorpusFile


@dataclass(frozen=True)
class Begin:
    """Event: a file is opened, with `records` records."""

    work: WorkFile
    records: int
    fingerprint: str


@dataclass(frozen=True)
class Known:
    """Event: a part that an earlier run published, with its ids and image hashes."""

    record: PartRecord
    ids: list[str]
    hashes: np.ndarray


@dataclass(frozen=True)
class End:
    """Event: the last part of the open file has been read."""


@dataclass(frozen=True)
class Done:
    """Event: a file that is finished already."""

    record: FileRecord


Event = Begin | Known | Chunk | End | Done


def listed(corpora: list[Corpus]) -> list[WorkFile]:
    """All files of the input, numbered."""
    pairs = [(corpus, file) for corpus in corpora for file in corpus.files]
    return [WorkFile(number, corpus, file) for number, (corpus, file) in enumerate(pairs)]


def slot_of(environment: Mapping[str, str], index: int | None, count: int | None) -> tuple[int, int]:
    """(slot, slots) of this process: (array task, rank) from Slurm or torchrun, else alone.

    index, count: --job-index and --job-count, which go before SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT. UserError
    for an array that has gaps, or an index that is out of range.
    """

    def number(*names: str) -> int | None:
        return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), None)

    if index is None and count is None and (task := number("SLURM_ARRAY_TASK_ID")) is not None:
        count = number("SLURM_ARRAY_TASK_COUNT") or 1
        first, step = number("SLURM_ARRAY_TASK_MIN") or 0, number("SLURM_ARRAY_TASK_STEP") or 1
        index, rest = divmod(task - first, step)
        last = number("SLURM_ARRAY_TASK_MAX")
        if rest or (last is not None and (last - first) // step + 1 != count):
            raise UserError(
                f"a job array of {count} tasks with numbers up to {last}: its tasks cannot be numbered through; "
                "give --job-index and --job-count, or an array without gaps"
            )
    index, count = index or 0, 1 if count is None else count
    if not 0 <= index < count:
        raise UserError(f"--job-index {index} is not below --job-count {count}: indices begin at 0")
    ranks = number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS") or 1
    rank = (number("RANK") if "WORLD_SIZE" in environment else number("SLURM_PROCID")) or 0
    return index * ranks + min(rank, ranks - 1), count * ranks


def local_rank() -> int:
    """Rank of this process on its machine, for choosing a GPU."""
    value = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return int(value) if value.isdigit() else 0


def events(
    output: Path, files: list[WorkFile], size: int, warn: Callable[[str], None], before: dict[str, PartRecord]
) -> Iterator[Event]:
    """Events of existing and missing parts, file by file: parts of at most `size` records, in order.

    Published parts are verified; damaged ones are named to `warn` and made again, and their records go into `before` under
    the part's name. UserError if a file changed since an earlier run made parts of it.
    """
    for work in files:
        done = finished(output, work, warn, before)
        if done:
            yield Done(done)
            continue
        with work.corpus.open(work.file) as opened:
            yield from _file_events(output, work, opened, size, warn, before)


def _file_events(
    output: Path,
    work: WorkFile,
    opened: OpenFile,
    size: int,
    warn: Callable[[str], None],
    before: dict[str, PartRecord],
) -> Iterator[Event]:
    damage = None
    try:
        records, fingerprint = work.corpus.scan(opened)
    except DamagedFile as error:
        damage, records, fingerprint = damaged(opened.name, work.corpus.source, error), 1, "damaged"
    yield Begin(work, records, fingerprint)
    count, part = -(-records // size), 0
    while part < count:
        known = published(output, work, part, fingerprint, warn, before)
        if known:
            yield Known(known, *contents_of(output, known))
            part += 1
            continue
        stop = part + 1
        while stop < count and not part_folder(output, work.number, stop).exists():
            stop += 1
        items = iter([(0, damage)]) if damage else work.corpus.read(opened, part * size)
        yield from chunks_of(items, part, size, stop)
        part = stop
    yield End()


def finished(
    output: Path, work: WorkFile, warn: Callable[[str], None], before: dict[str, PartRecord]
) -> FileRecord | None:
    """Record of a file whose parts are all there and verify; a damaged record is removed."""
    record = None
    try:
        record = read_file_record(output, work.number)
        for part in record.parts if record else []:
            check_part(output, part)
    except DamagedPart as damage:
        warn(f"{damage}; its file is looked at again")
        before |= {part.name: part for part in record.parts} if record else {}
        file_record_path(output, work.number).unlink()
        return None
    return record


def published(
    output: Path,
    work: WorkFile,
    part: int,
    fingerprint: str,
    warn: Callable[[str], None],
    before: dict[str, PartRecord],
) -> PartRecord | None:
    """Record of a verified part of a file, or None; a damaged one is removed."""
    folder = part_folder(output, work.number, part)
    if not folder.exists():
        return None
    try:
        record = read_part_record(output, work.number, part)
        before.setdefault(record.name, record)
        check_part(output, record)
    except DamagedPart as damage:
        warn(f"{damage}; this part is made again")
        shutil.rmtree(folder)
        return None
    if record.fingerprint != fingerprint:
        raise UserError(
            f"{output}: it was started with another content of {work.file.name} in input {work.corpus.source!r}; "
            "bring that back to continue it, or pass --output a new folder"
        )
    return record
