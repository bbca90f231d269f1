"""What each addition of docs/extending.md consists of: new files, and entries in files that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent / "additions"


@dataclass(frozen=True)
class Entry:
    """A text put into a file behind a line that is there once; `instead`: in place of it."""

    file: str
    behind: str
    text: str
    instead: bool = False


@dataclass(frozen=True)
class Addition:
    """One of them."""

    entries: Sequence[Entry]
    new: Mapping[str, str]  # path -> file in additions/
    tests: Sequence[Entry] = ()  # those that the section asks for in tests

    @property
    def files(self) -> set[str]:
        """All that it touches."""
        return {entry.file for entry in self.entries} | set(self.new)

    def make(self, root: Path, tests: bool = False) -> None:
        """In the sources at `root`, and in their tests."""
        for path, name in self.new.items():
            assert not (root / path).exists(), path
            (root / path).write_text((HERE / name).read_text(encoding="utf-8"), encoding="utf-8")
        for entry in (*self.entries, *(self.tests if tests else ())):
            text = (root / entry.file).read_text(encoding="utf-8")
            assert text.count(entry.behind) == 1, (entry.file, entry.behind)
            after = entry.text if entry.instead else entry.behind + entry.text
            (root / entry.file).write_text(text.replace(entry.behind, after), encoding="utf-8")


ADDITIONS = {
    "A base family": Addition(
        [
            Entry(
                "model/families.py",
                '        says={"attention_bias": False, "mlp_bias": False},\n    ),\n',
                '    "mistral": Family(\n'
                '        flavour="mistral",\n'
                "        attention_bias=False,\n"
                "        qk_norm=False,\n"
                '        end_of_text=("<|endoftext|>", "</s>"),\n'
                '        causal_lm="MistralForCausalLM",\n'
                '        licence="Apache-2.0",\n'
                '        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "head_dim": None},\n'
                '        plain={"sliding_window": ()},  # its class reads it, whatever else is said\n'
                "    ),\n",
            ),
            Entry("model/families.py", '    "mistral": "attention in a sliding window",\n', "", instead=True),
        ],
        {},
        [
            Entry("tests/model/base_configs.py", "from transformers import LlamaConfig, ", "MistralConfig, "),
            Entry(
                "tests/model/base_configs.py",
                "CLASSES = {",
                '"mistral": lambda **values: MistralConfig(**{"sliding_window": None, **values}), ',
            ),
        ],
    ),
    "An image tokenizer": Addition(
        [
            Entry(
                "tokenization/vq.py",
                "FORMS = (\n",
                '    Form("flat patches", _named("flat_patches"), "tokenization.vq_flat_patches:load_flat_patches"),\n',
            ),
            Entry("tokenization/vq.py", "LICENCES = {\n", '    "flat_patches": ("cc0-1.0", "nobody\'s."),\n'),
            Entry(
                "model/hf/vq_uni_x.py",
                "from .vqgan_uni_x import VQGAN, open_vqgan\n",
                "from .flat_patches_uni_x import FlatPatches, colours_of, patches_of\n",
            ),
            Entry(
                "model/hf/vq_uni_x.py",
                "FAMILIES = {\n",
                '    "flat_patches": Family(patches_of, colours_of, FlatPatches.from_pretrained),\n',
            ),
        ],
        {
            "model/hf/flat_patches_uni_x.py": "flat_patches_uni_x.py",
            "tokenization/vq_flat_patches.py": "vq_flat_patches.py",
        },
    ),
    "A kind of layer": Addition(
        [
            Entry(
                "model/layer_kinds.py",
                "KINDS = {\n",
                '    "within": LayerKind("none", within_modality=True, layer="model.within_layer:WithinLayer"),\n',
            ),
            Entry(
                "model/hf/configuration_uni_x.py",
                "LAYER_KINDS = {\n",
                '    "within": LayerKind(vision_weights="none", within_modality=True),\n',
            ),
        ],
        {"model/within_layer.py": "within_layer.py"},
    ),
    "An engine": Addition(
        [
            Entry(
                "pretrain/engines/__init__.py",
                "ENGINES = {\n",
                '    "plain": EngineKind("pretrain.engines.plain", check_layout="pretrain.engines.plain:check_layout"),\n',
            )
        ],
        {"pretrain/engines/plain.py": "plain.py"},
    ),
    "An evaluation": Addition(
        [
            Entry(
                "tools/evaluation/tasks.py",
                "EVALUATIONS = {\n",
                '    "perplexity": Evaluation(\n'
                '        summary="the exponential of the held-out losses",\n'
                '        run="tools.evaluation.perplexity:perplexity",\n'
                '        flags={**LOSSES, "config": None, "rows": None},\n'
                "        of=EXPORT_OR_CHECKPOINT,\n"
                "    ),\n",
            )
        ],
        {"tools/evaluation/perplexity.py": "perplexity.py"},
    ),
}
"""By the headings of docs/extending.md."""
