"""Data of a run as the loop reads it: training rows, held-out rows, tokenizer and prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from model.hf.text_uni_x import TextEncoder
from model.prompts import size_ids
from pretrain import setup
from pretrain.config import DataSection, TrainConfig
from pretrain.loader import RowDataset, RowSource, check_sources, rows_from
from pretrain.prefetch import bytes_needed
from pretrain.process_ranks import ProcessRanks
from pretrain.prompt_templates import read_prompt_templates
from pretrain.row_tensors import Row
from pretrain.rows import MixtureStage, RowSize
from pretrain.system.errors import UserError
from pretrain.system.logs import LOGGER
from pretrain.tasks import TaskShares, TokenizedPrompts, tokenize_prompts
from tokenization.readers.document import CAPTION_PAIR, CONVERSATION, EDIT, KINDS
from tokenization.shard_cache import GIB, Cache
from tokenization.shards import open_dataset
from tokenization.vq import find_folder, read_preprocess

OF_EDITS = {"drop_instruction", "drop_source", "drop_both", "shared_noise"}
"""Keys of data that say what is done with picture edits alone."""


def shares_of(data: DataSection) -> TaskShares:
    """Task shares of the configuration: how tasks are drawn."""
    return TaskShares(**{share.name: getattr(data, share.name) for share in dataclasses.fields(TaskShares)})


def cache_of(data: DataSection) -> Cache | None:
    """Local cache for datasets at URLs, if configured."""
    return Cache(Path(data.cache).absolute(), data.cache_limit) if data.cache else None


def heldout_dataset(data: DataSection, tokenized: TokenizedPrompts, routing_only: bool = False) -> RowDataset:
    """Rows of `data.heldout` for evaluation: drawn as in training, with a seed of its own and no code noise."""
    clean = dataclasses.replace(shares_of(data), code_noise=0.0, shared_noise=0.0)
    size = RowSize(data.sequence_length, data.row_multiple)
    source = RowSource(data.heldout, cache=cache_of(data))
    return RowDataset([source], tokenized, clean, size, 0, routing_only)


def too_long_warning(path: str | Path, rows: RowDataset, number: int) -> str | None:
    """Warning line on documents of a source that are longer than the sequence length and left out; None if there are
    none.

    UserError if that is all of it.
    """
    found, dataset = rows.plan.too_long(number), rows.datasets[number]
    if not len(found):
        return None
    usable = len(dataset) - len(dataset.lengths.left_out())
    what = f"longer, with the picture that is never cut, than a row of {rows.size.tokens} tokens"
    if len(found) == usable:
        raise UserError(f"{path}: all of its {usable:,} documents can be {what}: raise data.sequence_length")
    some = [str(dataset[int(place)]["id"]) if dataset.cache is None else f"number {place}" for place in found[:3]]
    names = ", ".join(some) + (", ..." if len(found) > len(some) else "")
    return (
        f"{path}: {len(found):,} of {usable:,} documents ({names}) can be {what}, and are left out of rows where they are: "
        "a new run with a larger data.sequence_length, or shards made with --max-text, have none"
    )


class Data:
    """The data of a run on one process. Raises UserError when sources, tokenizers and model do not fit, TryAgain when a
    URL of a source does not answer."""

    def __init__(self, config: TrainConfig, place: ProcessRanks):
        data = config.data
        cache = cache_of(data)
        manifests = [open_dataset(source.path, cache).manifest for source in data.sources]
        self.place, self.global_batch_size, self.workers = place, data.global_batch_size, data.workers
        self.cache_limit = data.cache_limit
        self.vq, self.shards_vq = data.vq, manifests[0]["vq"].get("name")
        self.dropped = {name for name in OF_EDITS if getattr(data, name)}
        self.tokenizer_json = Path(data.tokenizer) / "tokenizer.json"
        self.tokenizer = setup.load_tokenizer(data.tokenizer, manifests[0])
        self.model_config = setup.model_config(config.model, self.tokenizer, manifests[0])
        check_sources(manifests, self.model_config.vocabulary)
        self.templates = setup.prompt_templates(read_prompt_templates(data.prompt_templates), manifests)
        self.encode = TextEncoder(self.tokenizer_json.read_text(encoding="utf-8"))
        tokenized = tokenize_prompts(self.encode, self.model_config.vocabulary, self.templates, self.markup)
        size = RowSize(data.sequence_length, data.row_multiple)
        shares = shares_of(data)
        sources = [RowSource(source.path, source.weight, source.share, cache) for source in data.sources]
        self.paths = [source.path for source in sources]
        stages = [MixtureStage(stage.tokens, stage.shares) for stage in data.stages]
        self.train = RowDataset(sources, tokenized, shares, size, config.run.seed, place.routing_only, stages)
        self.heldout, self.heldout_path = None, data.heldout
        if data.heldout:
            heldout = open_dataset(data.heldout, cache).manifest
            check_sources([*manifests, heldout], self.model_config.vocabulary)
            setup.check_shapes(data.heldout, heldout, self.templates)
            self.heldout = heldout_dataset(data, tokenized, place.routing_only)

    def picture_shapes(self) -> list[dict]:
        """Image shapes that a model of this data generates, as in its export's configuration; empty for square
        images."""
        templates = self.templates
        return [
            {"grid": list(grid), "ids": size_ids(number, self.encode, templates)}
            for number, grid in enumerate(templates.shapes)
        ]

    def markup(self, text: str) -> list[int]:
        """Token ids of turn markup, which are control tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def training_rows(self, consumed: int, stopped: Callable[[], bool]) -> Iterator[list[Row]]:
        """This rank's rows of each step, beginning after so many rows of all ranks; `stopped`: whether the run is
        ending anyway."""
        place = self.place
        count = self.global_batch_size // place.data_ranks
        # every rank warns about its own workers
        rows = rows_from(
            self.train, consumed, place.data_rank, place.data_ranks, self.workers, count, LOGGER.warning, stopped
        )
        while True:
            yield [next(rows) for _ in range(count)]

    def heldout_rows(self, count: int) -> list[Row]:
        """This rank's share of the first `count` held-out rows; empty without held-out data."""
        if self.heldout is None:
            return []
        return [self.heldout[index] for index in range(self.place.data_rank, count, self.place.data_ranks)]

    def skills(self) -> set[str]:
        """Skills that the training documents teach, by the server's names. Plain text and interleaved documents are not
        counted as any."""
        drawn = self.train.shares.text_to_image  # the other captioned pictures train captioning
        shares = {
            "draw": (CAPTION_PAIR, drawn),
            "caption": (CAPTION_PAIR, 1 - drawn),
            "edit": (EDIT, 1),
            "chat": (CONVERSATION, 1),
        }
        there = {kind for kind in (CAPTION_PAIR, EDIT, CONVERSATION) if any(self._has(kind))}
        return {skill for skill, (kind, share) in shares.items() if kind in there and share > 0}

    def _has(self, kind: str) -> Iterator[bool]:
        """Whether each training dataset has documents of this kind."""
        return ((dataset.lengths.kinds == KINDS.index(kind)).any() for dataset in self.train.datasets)

    def warnings(self) -> Iterator[str]:
        """Warnings about the sources before training, a line each."""
        sets = [(path, self.train, number) for number, path in enumerate(self.paths)]
        for path, rows, number in [*sets, *([(self.heldout_path, self.heldout, 0)] if self.heldout else [])]:
            if line := too_long_warning(path, rows, number):
                yield line
        called = read_preprocess(find_folder(self.vq))[0] if self.vq else self.shards_vq
        if called != self.shards_vq:
            yield (
                f"data.vq is called {called!r}, and the shards were made with {self.shards_vq!r}: if that is another image "
                "tokenizer, nothing can be drawn or exported with it"
            )
        trained = {dataset.fingerprint for dataset in self.train.datasets}
        if self.heldout and self.heldout.datasets[0].fingerprint in trained:
            yield f"data.heldout {self.heldout_path} is trained on too: its losses say nothing of what was not seen"
        if self.dropped and not any(self._has(EDIT)):
            yield f"data.{sorted(self.dropped)[0]}: no source has picture edits, so it changes nothing"
        per_step, whole = self.global_batch_size * self.train.size.tokens, self.train.plan.tokens()
        if per_step > whole:
            yield (
                f"data.global_batch_size {self.global_batch_size:,}: a step reads {per_step:,} tokens, {per_step / max(1, whole):,.1f} times "
                f"all documents together ({whole:,.0f}): lower it, or data.sequence_length, unless that is meant"
            )
        for number, source in enumerate(self.paths):
            share = self.train.plan.cut_turns(number)
            if share:
                yield (
                    f"{source}: {share:.2%} of its conversations are longer than a row of {self.train.size.tokens} tokens and "
                    "are cut: raise data.sequence_length, or shorten them"
                )
        if not self.cache_limit:
            return
        datasets, plan = self.train.datasets, self.train.plan
        needed, best = (bytes_needed(datasets, plan, *blocks) / GIB for blocks in ((0,), (0, 1)))
        if self.cache_limit < best:
            often = self.cache_limit < 1.25 * needed  # blocks differ by the shards at their boundaries
            what = "may be fetched again and again" if often else "are not fetched before they are needed"
            yield (
                f"data.cache_limit {self.cache_limit:g}: rows that are read together need {needed:.3g} GiB of shards, and "
                f"{best:.3g} with those that come next: shards {what}; raise it"
            )

    def checkpoint_files(self) -> dict[str, bytes]:
        """Files of a checkpoint beside its tensors, so that it can be converted without the rest of the run."""
        return {
            "model.json": (json.dumps(self.model_config.to_dict(), indent=1) + "\n").encode(),
            "unix_prompts.json": self.templates.to_json().encode(),
            "tokenizer.json": self.tokenizer_json.read_bytes(),
        }
