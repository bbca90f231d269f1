"""Processor: images, captions and conversations to token ids and back. Travels inside exported checkpoints.

A prompt is encoded in parts, as in training, and text never becomes a control token: `<|vision_start|>` in a caption is
encoded as its characters.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

# as in modeling_uni_x.py: transformers 4.57 leaves what this file imports as another folder of the same name had it
_release = Path(__file__).read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
for _name, _module in list(sys.modules.items()) if _release.startswith("CODE = ") else ():
    _imported = _name.startswith(f"{__package__}.") and not _name.endswith((".modeling_uni_x", ".processing_uni_x"))
    if _imported and f'CODE = "{getattr(_module, "CODE", "")}"' != _release:
        del sys.modules[_name]

# transformers 4.57 copies the files that this one imports, and not what those import: so all are named here.
from .codes_uni_x import VQ_FOLDER, PictureCodesMixin
from .markup_uni_x import MarkupMixin
from .pictures_uni_x import fit  # noqa: F401
from .shapes_uni_x import shape_of, size_word, trailing_shape
from .sources_uni_x import (
    check_messages,
    known_options,
    listed,
    make_batch,
    open_picture,
    parts_of_messages,
    texts_of,
    without_pictures,
)
from .text_uni_x import TextEncoder  # noqa: F401
from .vq_uni_x import FAMILIES  # noqa: F401
from .vqgan_uni_x import VQGAN  # noqa: F401

PROCESSOR_FILE, PROMPTS_FILE = "processor_config.json", "unix_prompts.json"
CAPTION = "{caption}"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
UNPADDED = {"padding": False, "return_tensors": None}  # defaults of transformers' processors
Part = str | Image.Image


class UniXProcessor(MarkupMixin, PictureCodesMixin, ProcessorMixin):
    """Processor of a Uni-X model: prompts of its tasks, and its outputs as text and images.

    `AutoProcessor.from_pretrained(folder, trust_remote_code=True)` opens it. `draw`, `edit` and `caption` take lists and
    return a BatchFeature of left-padded tensors, whose keys are what the model's methods take:

        codes = model.generate_images(**processor.draw(["red heart"]), guidance_scale=3.0)
        processor.pictures(codes)

    Words of users are what `draw`, `edit`, `caption` and the contents of `apply_chat_template` take: a control token in
    them is the characters that spell it. What is called directly, `processor(text)`, takes text that is marked up
    already, as trainers do: `<|im_end|>` and the end of text are control tokens there; `split_special_tokens=True`
    makes its text a user's. It and `apply_chat_template` return what transformers' processors do: lists of ids without
    padding, unless `padding` and `return_tensors` ask for more.

    The image tokenizer is opened when a picture is first read or drawn.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "PreTrainedTokenizerFast"
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, tokenizer, settings: dict[str, Any], prompts: dict[str, Any], folder: str) -> None:
        """`settings` and `prompts` are the contents of processor_config.json and unix_prompts.json in `folder`."""
        self.tokenizer = tokenizer
        self.chat_template = getattr(tokenizer, "chat_template", None)
        self.settings, self.prompts, self.folder = settings, prompts, folder
        self.grid = tuple(prompts["grid"])
        self.num_codes = self.grid[0] * self.grid[1]
        self.shapes = [tuple(grid) for grid in prompts.get("shapes", ())]  # empty for square images
        self.offset = settings["image_token_offset"]
        self.start, self.end, self.eos = (
            settings[f"{name}_token_id"] for name in ("vision_start", "vision_end", "eos")
        )
        self._tokenizer_as_opened = self._tokenizer_state()
        self.size_words = [self.encode(size_word(grid)) for grid in self.shapes]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder!r}, grid={self.grid}{', shapes=' + str(self.shapes) if self.shapes else ''})"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, revision: str | None = None, **kwargs) -> UniXProcessor:
        """Open the folder or Hub repository of an export."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["*.json", "*.jinja", "*_uni_x.py", f"{VQ_FOLDER}/*"]
            folder = Path(snapshot_download(str(folder), revision=revision, allow_patterns=patterns))
        missing = [name for name in (PROCESSOR_FILE, PROMPTS_FILE, VQ_FOLDER) if not (folder / name).exists()]
        if missing:
            raise OSError(
                f"{folder} has no {', no '.join(missing)}: tools that tune or merge save the model alone. Copy the files "
                f"of the processor from the export: AutoProcessor.from_pretrained(export, trust_remote_code=True)"
                f".save_pretrained({str(folder)!r})"
            )
        settings, prompts = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (PROCESSOR_FILE, PROMPTS_FILE)
        )
        # not AutoTokenizer, which under transformers 5 asks on the terminal whether the folder's code may run
        return cls(PreTrainedTokenizerFast.from_pretrained(folder), settings, prompts, str(folder))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write what `from_pretrained` reads, the image tokenizer and the code included -> the files' paths."""
        if push_to_hub:
            raise ValueError("push_to_hub: save to a folder, then upload it with huggingface_hub's upload_folder")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(self.folder)
        if self._tokenizer_state() == self._tokenizer_as_opened and (source / TOKENIZER_FILES[0]).is_file():
            # copied: 4.57 cannot load the files that transformers 5 would write
            for name in TOKENIZER_FILES:
                if (source / name).is_file() and source.resolve() != folder.resolve():
                    shutil.copy(source / name, folder / name)
        else:
            self.tokenizer.save_pretrained(folder)
        if self.chat_template:
            (folder / TOKENIZER_FILES[-1]).write_text(self.chat_template, encoding="utf-8")
        (folder / PROCESSOR_FILE).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        prompts = json.dumps(self.prompts, ensure_ascii=False, indent=2) + "\n"
        (folder / PROMPTS_FILE).write_text(prompts, encoding="utf-8")
        # transformers runs a copy that has only what this file imports: the model's code is beside the export's own files
        for path in (*Path(__file__).parent.glob("*_uni_x.py"), *source.glob("*_uni_x.py")):
            if path.resolve() != (folder / path.name).resolve():
                shutil.copy(path, folder / path.name)
        if Path(self.folder).resolve() != folder.resolve():
            shutil.copytree(Path(self.folder) / VQ_FOLDER, folder / VQ_FOLDER, dirs_exist_ok=True)
        return sorted(str(path) for path in folder.rglob("*") if path.is_file())

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Sequence | Image.Image | None = None,
        split_special_tokens: bool = False,
        **options,
    ) -> BatchFeature:
        """Encode marked-up text with its images: for each text an image or a list of images.

        A picture takes the place of `<|vision_start|><|image_pad|><|vision_end|>`; where no text has this, pictures stand
        before their text. With `split_special_tokens` control tokens in the text are characters. Other arguments cut and
        pad as transformers' tokenizers do, and unless they ask for it rows are lists and have no padding: trainers take
        every id that they get for one of the text. Raises ValueError for other numbers of pictures and for unknown arguments.
        """
        texts = texts_of(text if text is not None else [""] * len(listed(images)), "text")
        pictures = listed(images) or [[]] * len(texts)
        if isinstance(text, str) and len(pictures) > 1 and not isinstance(pictures[0], list | tuple):
            pictures = [pictures]
        if len(pictures) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pictures)} pictures: give one picture, or list, a text")
        rows = [
            self._marked_up(words, listed(own), plain=split_special_tokens)
            for own, words in zip(pictures, texts, strict=True)
        ]
        return self.batch(rows, **{**UNPADDED, **options})

    def draw(self, captions: Sequence[str], wording: int = 0, shape=None) -> BatchFeature:
        """Prompts for text-to-image, for `generate_images`.

        `shape`, or a list of one a caption, is a ratio of width to height as "4:3", or one of `shapes`, [rows, columns] of
        codes; None lets a model of several shapes choose. Raises ValueError for a shape that it does not draw.
        """
        captions, wordings = texts_of(captions, "captions"), self.prompts["text_to_image"]
        if not 0 <= wording < len(wordings):
            raise ValueError(f"wording {wording} is none of 0 to {len(wordings) - 1}: this model learned so many")
        before, after = wordings[wording].split(CAPTION)
        rows = [[*self.encode(before), *self.encode(text), *self.encode(after), *self._opening] for text in captions]
        return self._for_pictures(self.batch(rows), shape, len(rows))

    def edit(self, images: Sequence, instructions: Sequence[str], shape=None) -> BatchFeature:
        """Prompts for image editing, for `generate_images`: for each instruction a source image, or a list of them.

        The instruction, then the sources, are a user's turn, and the answer opens with a picture. `shape` as for `draw`.
        """
        images, instructions = listed(images), texts_of(instructions, "instructions")
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} pictures for {len(instructions)} instructions: give one, or a list, each")
        sources = [self.ids_of([open_picture(one) for one in listed(own)]) for own in images]
        answer = [*self._markup("<|im_start|>assistant\n"), *self._opening]
        pairs = zip(sources, instructions, strict=True)
        found = self.batch([[*self._turn("user", [*self.encode(text), *own]), *answer] for own, text in pairs])
        image_only = self.batch([[*self._turn("user", own), *answer] for own in sources])
        found["image_only_ids"], found["image_only_mask"] = image_only["input_ids"], image_only["attention_mask"]
        return self._for_pictures(found, shape, len(instructions))

    def caption(self, images: Sequence[Image.Image], question: str | None = None) -> BatchFeature:
        """Prompts for captioning, or for visual questions, for `generate`."""
        return self.batch(
            [
                self.ids_of([open_picture(image), question or self.prompts["image_to_text"][0]])
                for image in listed(images)
            ]
        )

    def apply_chat_template(
        self,
        conversation: Sequence,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        **options,
    ) -> BatchFeature | str | list[str] | Tensor:
        """Ids of one conversation or of a list of them, for trainers; for `generate` with `add_generation_prompt`,
        `return_tensors="pt"` and, of several, `padding=True`.

        A message is {"role": ..., "content": text, None or a list of {"type": "text", "text": ...} and {"type": "image"}
        with a picture under "image", "url", "path" or "image_url"}: of PIL, a path, a URL, an array or a tensor. The form
        is ChatML, that of Qwen's template: `<|im_start|>`, role and line break, content, `<|im_end|>` and line break; a
        tokenizer without these tokens spells them out, as in training.

        `continue_final_message` leaves the last turn open. `return_assistant_tokens_mask` adds `assistant_masks`, 1 at
        what an assistant says and at the end of its turn. `tokenize=False` gives the text, for `processor(text, images)`,
        which makes the same ids of it unless a user's words hold control tokens. `return_dict=False` gives ids alone.
        `chat_template` is another template; it is rendered, then read as marked-up text. Other arguments as for calls.
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt opens a turn, continue_final_message goes on with one: choose")
        single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if single else list(conversation)
        if not conversations:
            raise ValueError("there is no conversation: give a list of messages, or of such lists")
        for messages in conversations:
            check_messages(messages)
        known_options(options)
        prompting = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        if not tokenize or chat_template not in (None, self.chat_template):
            if return_assistant_tokens_mask:
                raise ValueError("return_assistant_tokens_mask needs tokenize=True and the folder's own chat template")
            template = chat_template or self.chat_template
            texts = [
                self.tokenizer.apply_chat_template(
                    [{**message, "content": without_pictures(message["content"])} for message in messages],
                    chat_template=template,
                    tokenize=False,
                    **prompting,
                )
                for messages in conversations
            ]
            if not tokenize:
                return texts[0] if single else texts
            own = [
                [part for part in parts_of_messages(messages) if not isinstance(part, str)]
                for messages in conversations
            ]
            rows = [self._marked_up(text, pictures) for text, pictures in zip(texts, own, strict=True)]
            masks = None
        else:
            turned = [self._turns(messages, **prompting) for messages in conversations]
            rows = [ids for ids, _ in turned]
            masks = [mask for _, mask in turned] if return_assistant_tokens_mask else None
        found = self.batch(rows, masks, **{**UNPADDED, **options})
        if return_dict:
            return found
        return found["input_ids"][0] if single and isinstance(found["input_ids"], list) else found["input_ids"]

    def document(self, ids: Sequence[int] | Tensor) -> list[Part]:
        """Texts and images of a document's ids, in order; special tokens and empty texts are left out."""
        parts: list[Part] = []
        words: list[int] = []
        codes: list[int] = []
        shape = None
        for token in [*map(int, ids), self.end]:
            if token >= self.offset:
                codes.append(token - self.offset)
                continue
            if codes:
                grid = self.grid if shape is None else self.shapes[shape]
                if len(codes) != grid[0] * grid[1]:
                    raise ValueError(
                        f"{len(codes)} codes are no picture of {grid[0]} x {grid[1]} = {grid[0] * grid[1]}"
                    )
                parts += self.pictures([torch.tensor(codes).view(grid)])
                codes = []
            if token == self.start and self.shapes:
                shape = trailing_shape(words, self.size_words)
                words = words if shape is None else words[: len(words) - len(self.size_words[shape])]
            if token in (self.start, self.end):
                text = self.tokenizer.decode(words, skip_special_tokens=True)
                parts += [text] if text.strip() else []
                words = []
            else:
                words.append(token)
        return parts

    def texts(self, ids: Tensor, prompt: BatchFeature) -> list[str]:
        """New text of `generate`'s output for a batch of prompts."""
        new = ids[:, prompt["input_ids"].shape[1] :]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]

    def batch(
        self, rows: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None = None, **options
    ) -> BatchFeature:
        """Pad rows of ids to input_ids and attention_mask [b, longest], on the left unless `options` say otherwise.

        `masks` are those of the assistant's tokens. Raises ValueError for an option that is not known.
        """
        options = known_options(options)
        columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if masks is not None:
            columns["assistant_masks"] = masks
        pad = {"input_ids": self.eos, "attention_mask": 0, "assistant_masks": 0}
        return make_batch(columns, pad, (self.start, self.end), **options)

    @property
    def unconditional_ids(self) -> Tensor:
        """Ids [u] of the unconditional prompt of classifier-free guidance."""
        return torch.tensor([*self.encode(self.prompts["unconditional"]), *self._opening])

    @property
    def _opening(self) -> list[int]:
        """End of a text-to-image prompt: empty where `generate_images` adds size words."""
        return [] if self.shapes else [self.start]

    def _tokenizer_state(self) -> tuple:
        tokenizer = self.tokenizer
        return len(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length

    def _for_pictures(self, found: BatchFeature, shape, count: int) -> BatchFeature:
        """Batch of `count` prompts with the other arguments of `generate_images`. Raises ValueError for an unknown
        shape."""
        a_grid = isinstance(shape, list | tuple) and len(shape) == 2 and all(type(number) is int for number in shape)
        asked = list(shape) if isinstance(shape, list | tuple) and not a_grid else [shape] * count
        if len(asked) != count:
            raise ValueError(f"{len(asked)} shapes for {count} prompts: give one each, one for all, or none")
        shapes = [None if one is None else shape_of(one, self.shapes or [self.grid]) for one in asked]
        found["unconditional_ids"] = self.unconditional_ids
        found["shapes" if self.shapes else "num_codes"] = shapes if self.shapes else self.num_codes
        return found


UniXProcessor.register_for_auto_class()
# transformers adds this file to sys.modules but not to its package, where dill looks (datasets pickles for its workers)
if __package__:
    setattr(import_module(__package__), __name__.rpartition(".")[2], sys.modules[__name__])
