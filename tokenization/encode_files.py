"""One worker's run over its files: what is missing is read, prepared, encoded and published, all at the same time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenization.encode import PartCoder, Publisher, RejectLimit, Stopwatch, TooManyRejects
from tokenization.manifest import write_rejects
from tokenization.parts import PARTS, FileRecord, PartRecord, write_file_record, write_part
from tokenization.pipeline import CHUNK, Chunk, Preparation, prefetched
from tokenization.work import Begin, Done, Event, Known, WorkFile, events

if TYPE_CHECKING:
    from tokenization.vq_base import VQ


def encode_files(
    output: Path,
    files: list[WorkFile],
    samples_per_part: int,
    preparation: Preparation,
    vq: VQ,
    batch_size: int,
    threads: int,
    watch: Stopwatch,
    limit: RejectLimit,
    warn: Callable[[str], None],
) -> int:
    """Make the missing parts of these files. Returns how many pictures were encoded.

    Raises TooManyRejects, with all rejects so far in rejects.jsonl; UserError if a file changed since an earlier run.
    """
    from tqdm import tqdm

    coder = PartCoder(vq, batch_size, limit, watch, preparation.filters.duplicate_bits)
    ahead = 2 * (threads + batch_size // CHUNK + 1)
    stream = events(output, files, samples_per_part, warn)
    records: list[PartRecord] = []  # all that are there
    begun, first, pictures = None, 0, 0  # the file that is being worked on, and where its parts begin in `records`

    def prepare(event: Event) -> Event:
        return preparation.prepare(event) if isinstance(event, Chunk) else event

    def publish(begun: Begin, part: int, content: tuple[Any, ...]) -> None:
        work = begun.work
        records.append(write_part(output, work.number, part, work.corpus.source, begun.fingerprint, *content))

    def conclude(begun: Begin, first: int) -> None:
        name = begun.work.file.name
        parts = records[first:]
        write_file_record(output, FileRecord(begun.work.number, name, begun.fingerprint, begun.records, parts))

    def recall(record: PartRecord) -> None:
        limit.count(record.counts["documents"] + sum(record.rejects.values()), Counter(record.rejects))

    try:
        with (
            closing(prefetched(stream, prepare, threads, ahead)) as arriving,
            Publisher() as publisher,
            tqdm(unit="doc", mininterval=0.5 if sys.stderr.isatty() else 30) as bar,
        ):
            while True:
                with watch.measure("waiting for input"):
                    event = next(arriving, None)
                if event is None:
                    break
                if isinstance(event, Chunk):
                    done = coder.add(event)
                    bar.update(len(event.items))
                    if done:
                        pictures += sum(len(document.codes) for document in done[0])
                        with watch.measure("writing"):
                            publisher.submit(partial(publish, begun, event.part, done))
                    continue
                with watch.measure("writing"):
                    publisher.wait()  # what follows reads or changes the list of records
                if isinstance(event, Begin):
                    begun, first = event, len(records)
                    coder.begin_file()
                elif isinstance(event, Known):
                    records.append(event.record)
                    recall(event.record)
                    coder.known(event.ids, event.hashes)
                elif isinstance(event, Done):
                    records += event.record.parts
                    for record in event.record.parts:
                        recall(record)
                else:
                    conclude(begun, first)
        limit.judge()
    except TooManyRejects:
        paths = [output / PARTS / record.name / "rejects.jsonl" for record in sorted(records, key=lambda r: r.name)]
        write_rejects(output, paths, [reject.as_json() for reject in coder.rejects])
        raise
    return pictures
