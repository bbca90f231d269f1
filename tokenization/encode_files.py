"""A worker's pipeline over its files: missing parts are read, prepared, encoded and published concurrently."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenization.encode import CodedPart, DocumentEncoder, PartCoder, Publisher, RejectLimit, Stopwatch, TooManyRejects
from tokenization.encoder_record import encoder_record, made_otherwise
from tokenization.manifest import write_rejects
from tokenization.parts import PARTS, FileRecord, PartRecord, write_file_record, write_part
from tokenization.pipeline import CHUNK, Chunk, Preparation, prefetched
from tokenization.worker_plan import Begin, Done, Event, Known, WorkFile, events

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
    """Make the missing parts of these files -> number of encoded images.

    Raises TooManyRejects, with all rejects so far in rejects.jsonl; UserError if a file changed since an earlier run.
    """
    from tqdm import tqdm

    ahead = 2 * (threads + batch_size // CHUNK + 1)
    before: dict[str, PartRecord] = {}  # parts that exist and are made again
    encoder_now = encoder_record(vq.device, batch_size)
    stream = events(output, files, samples_per_part, warn, before)
    there: list[list[PartRecord]] = []  # existing parts of each file
    begun = None  # current file

    def prepare(event: Event) -> Event:
        return preparation.prepare(event) if isinstance(event, Chunk) else event

    def publish(begun: Begin, parts: list[PartRecord], number: int, part: CodedPart) -> None:
        part.wait()
        work, content = begun.work, (part.documents, part.rejects, part.hashes, encoder_now, part.first_frames)
        record = write_part(output, work.number, number, work.corpus.source, begun.fingerprint, *content)
        parts.append(record)
        if change := made_otherwise(before.get(record.name), record):
            warn(change)

    def conclude(begun: Begin, parts: list[PartRecord]) -> None:
        name = begun.work.file.name
        write_file_record(output, FileRecord(begun.work.number, name, begun.fingerprint, begun.records, parts))

    def recall(record: PartRecord) -> None:
        limit.count(record.counts["documents"] + sum(record.rejects.values()), Counter(record.rejects))

    try:
        with (
            closing(prefetched(stream, prepare, threads, ahead)) as arriving,
            DocumentEncoder(vq, watch) as encoder,
            Publisher() as publisher,
            tqdm(unit="doc", mininterval=0.5 if sys.stderr.isatty() else 30) as bar,
        ):
            coder = PartCoder(encoder, batch_size, limit, preparation.filters.duplicate_bits)
            while True:
                with watch.measure("waiting for input"):
                    event = next(arriving, None)
                if event is None:
                    break
                if isinstance(event, Chunk):
                    done = coder.add(event)
                    bar.update(len(event.items))
                    if done:
                        with watch.measure("writing"):
                            publisher.submit(partial(publish, cast(Begin, begun), there[-1], event.part, done))
                elif isinstance(event, Begin):
                    begun = event
                    there.append([])
                    coder.begin_file()
                elif isinstance(event, Known):
                    with watch.measure("writing"):
                        publisher.submit(partial(there[-1].append, event.record))
                    recall(event.record)
                    coder.known(event.ids, event.hashes)
                elif isinstance(event, Done):
                    there.append(event.record.parts)
                    for record in event.record.parts:
                        recall(record)
                else:
                    with watch.measure("writing"):
                        publisher.submit(partial(conclude, cast(Begin, begun), there[-1]))
            with watch.measure("writing"):
                publisher.wait()
        limit.judge()
    except TooManyRejects:
        paths = [output / PARTS / record.name / "rejects.jsonl" for parts in there for record in parts]
        write_rejects(output, paths, [reject.as_json() for reject in coder.rejects])
        raise
    return coder.pictures
