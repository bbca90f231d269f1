"""Pictures, captions and conversations to ids and back. Travels inside exported checkpoints.

A prompt is encoded piece by piece, as in training, and text never becomes a control token: a caption that spells
`<|vision_start|>` is the characters of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from .pictures_uni_x import fit_square, images_of, pixels_of
from .text_uni_x import TextEncoder
from .vq_uni_x import FAMILIES, open_picture_tokenizer

PROCESSOR_FILE, PROMPTS_FILE, VQ_FOLDER = "processor_config.json", "unix_prompts.json", "vq"
CAPTION = "{caption}"
Part = str | Image.Image


class UniXProcessor(ProcessorMixin):
    """What stands between people and a Uni-X model: prompts for its tasks, and its answers as text and pictures.

    `AutoProcessor.from_pretrained(folder, trust_remote_code=True)` opens it. Every method that makes a prompt takes
    lists and returns a BatchFeature of left-padded tensors, whose keys are what the model's methods take:

        codes = model.generate_images(**processor.draw(["red heart"]), guidance_scale=3.0)
        processor.pictures(codes)

    The image tokenizer is opened when a picture is first read or drawn.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer, settings: dict[str, Any], prompts: dict[str, Any], folder: str) -> None:
        """`settings` and `prompts` are the contents of processor_config.json and unix_prompts.json in `folder`."""
        self.tokenizer = tokenizer
        self.chat_template = getattr(tokenizer, "chat_template", None)
        self.settings, self.prompts, self.folder = settings, prompts, folder
        self.grid = tuple(prompts["grid"])
        self.num_codes = self.grid[0] * self.grid[1]
        self.offset = settings["image_token_offset"]
        self.start, self.end, self.eos = (
            settings[f"{name}_token_id"] for name in ("vision_start", "vision_end", "eos")
        )
        self._picture_tokenizer: tuple[torch.nn.Module, Any] | None = None
        self._text_encoder: tuple[int, TextEncoder] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder!r}, grid={self.grid})"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, revision: str | None = None, **kwargs) -> UniXProcessor:
        """Open the folder or Hub repository of an export."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["*.json", "*.jinja", f"{VQ_FOLDER}/*"]
            folder = Path(snapshot_download(str(folder), revision=revision, allow_patterns=patterns))
        settings, prompts = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (PROCESSOR_FILE, PROMPTS_FILE)
        )
        return cls(AutoTokenizer.from_pretrained(folder), settings, prompts, str(folder))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write what `from_pretrained` reads, the image tokenizer and the code included -> the files' paths."""
        if push_to_hub:
            raise ValueError("push_to_hub: save to a folder, then upload it with huggingface_hub's upload_folder")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / PROCESSOR_FILE).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        prompts = json.dumps(self.prompts, ensure_ascii=False, indent=2) + "\n"
        (folder / PROMPTS_FILE).write_text(prompts, encoding="utf-8")
        for name in ("processing_uni_x.py", "pictures_uni_x.py", "text_uni_x.py", "vq_uni_x.py"):
            shutil.copy(Path(__file__).with_name(name), folder / name)
        if Path(self.folder).resolve() != folder.resolve():
            shutil.copytree(Path(self.folder) / VQ_FOLDER, folder / VQ_FOLDER, dirs_exist_ok=True)
        return sorted(str(path) for path in folder.rglob("*") if path.is_file())

    def __call__(
        self, text: str | Sequence[str] | None = None, images: Sequence | Image.Image | None = None, **kwargs
    ) -> BatchFeature:
        """Prompts of pictures, then text: a text each, and for each text a picture or a list of pictures."""
        texts = [text] if isinstance(text, str) else list(text or [""] * len(_listed(images)))
        pictures = _listed(images) or [[]] * len(texts)
        if len(pictures) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pictures)} pictures: give one picture, or list, a text")
        return self.batch([self.ids_of([*_listed(own), said]) for own, said in zip(pictures, texts, strict=True)])

    def draw(self, captions: Sequence[str], wording: int = 0) -> BatchFeature:
        """Prompts for pictures of `captions`, for `generate_images`."""
        before, after = self.prompts["text_to_image"][wording].split(CAPTION)
        rows = [[*self.encode(before), *self.encode(text), *self.encode(after), self.start] for text in captions]
        return self._for_pictures(self.batch(rows))

    def edit(self, images: Sequence, instructions: Sequence[str]) -> BatchFeature:
        """Prompts for edits, for `generate_images`: for each instruction a source picture, or a list of them.

        The instruction, then the sources, are a user's turn, and the answer opens with a picture.
        """
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} pictures for {len(instructions)} instructions: give one, or a list, each")
        sources = [self.ids_of(_listed(own)) for own in images]
        answer = [*self._markup("<|im_start|>assistant\n"), self.start]
        pairs = zip(sources, instructions, strict=True)
        found = self.batch([[*self._turn("user", [*self.encode(text), *own]), *answer] for own, text in pairs])
        image_only = self.batch([[*self._turn("user", own), *answer] for own in sources])
        found["image_only_ids"], found["image_only_mask"] = image_only["input_ids"], image_only["attention_mask"]
        return self._for_pictures(found)

    def caption(self, images: Sequence[Image.Image], question: str | None = None) -> BatchFeature:
        """Prompts for captions of `images`, or for answers to a question about each, for `generate`."""
        return self.batch([self.ids_of([image, question or self.prompts["image_to_text"][0]]) for image in images])

    def apply_chat_template(
        self, conversation: Sequence, chat_template: str | None = None, add_generation_prompt: bool = True, **kwargs
    ) -> BatchFeature:
        """Prompts of one conversation or of a list of them, for `generate` or `generate_documents`.

        A message is {"role": ..., "content": text or a list of {"type": "text", "text": ...} and {"type": "image",
        "image": PIL picture}}. The form is ChatML, that of Qwen's template: `<|im_start|>`, role and line break,
        content, `<|im_end|>` and line break; a tokenizer without these tokens spells them out, as in training.
        """
        conversations = [conversation] if conversation and isinstance(conversation[0], dict) else conversation
        rows = []
        for messages in conversations:
            ids: list[int] = []
            for message in messages:
                content = message["content"]
                parts = [content] if isinstance(content, str) else [item[item["type"]] for item in content]
                ids += self._turn(message["role"], self.ids_of(parts))
            rows.append([*ids, *self._markup("<|im_start|>assistant\n")] if add_generation_prompt else ids)
        return self.batch(rows)

    def document(self, ids: Sequence[int] | Tensor) -> list[Part]:
        """The texts and pictures of a document's ids, in order; special tokens and empty texts are left out."""
        parts: list[Part] = []
        words: list[int] = []
        codes: list[int] = []
        for token in [*map(int, ids), self.end]:
            if token >= self.offset:
                codes.append(token - self.offset)
                continue
            if codes:
                parts += self.pictures(torch.tensor([codes]))
                codes = []
            if token in (self.start, self.end):
                text = self.tokenizer.decode(words, skip_special_tokens=True)
                parts += [text] if text.strip() else []
                words = []
            else:
                words.append(token)
        return parts

    def texts(self, ids: Tensor, prompt: BatchFeature) -> list[str]:
        """What `generate` added to a batch of prompts, as text."""
        new = ids[:, prompt["input_ids"].shape[1] :]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]

    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of codes [b, rows * columns]. Raises ValueError for another number of codes."""
        rows, columns = self.grid
        if codes.shape[-1] != self.num_codes:
            raise ValueError(f"{codes.shape[-1]} codes are no picture: it has {rows} x {columns} = {self.num_codes}")
        model, family = self._tokenizer_of_pictures()
        with torch.no_grad():
            return images_of(family.decode(model, codes.cpu().view(-1, rows, columns)).numpy())

    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """Codes [b, rows * columns] int64 of pictures of any size."""
        model, family = self._tokenizer_of_pictures()
        squares = [fit_square(image, self.settings["image_size"]) for image in images]
        with torch.no_grad():  # one at a time, so that the codes of a picture never depend on its neighbours
            return torch.cat([family.encode(model, torch.from_numpy(pixels_of([one]))).flatten(1) for one in squares])

    def ids_of(self, parts: Sequence[Part]) -> list[int]:
        """Texts and pictures in order -> ids, each picture between its markers."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids += self.encode(part)
            else:
                ids += [self.start, *(self.codes([part])[0] + self.offset).tolist(), self.end]
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens in it are only characters."""
        if not text:
            return []
        size = len(self.tokenizer)  # a token that was added meanwhile is a control token, too
        if self._text_encoder is None or self._text_encoder[0] != size:
            self._text_encoder = size, TextEncoder(self.tokenizer.backend_tokenizer.to_str())
        return self._text_encoder[1](text)

    def batch(self, rows: Sequence[Sequence[int]]) -> BatchFeature:
        """Rows of ids -> input_ids and attention_mask [b, longest], padded on the left."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.eos] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchFeature({"input_ids": ids, "attention_mask": mask})

    @property
    def unconditional_ids(self) -> Tensor:
        """Ids [u] of the prompt for any picture, guidance's other half."""
        return torch.tensor([*self.encode(self.prompts["unconditional"]), self.start])

    def _markup(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _turn(self, role: str, content: Sequence[int]) -> list[int]:
        if not role.isidentifier():  # a role stands among control tokens
            raise ValueError(f"role {role!r} is not one: give user, assistant or system")
        return [*self._markup(f"<|im_start|>{role}\n"), *content, *self._markup("<|im_end|>"), *self._markup("\n")]

    def _for_pictures(self, found: BatchFeature) -> BatchFeature:
        found["unconditional_ids"], found["num_codes"] = self.unconditional_ids, self.num_codes
        return found

    def _tokenizer_of_pictures(self) -> tuple[torch.nn.Module, Any]:
        if self._picture_tokenizer is None:
            folder = Path(self.folder) / VQ_FOLDER
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("_class_name", config.get("model_type"))
            self._picture_tokenizer = open_picture_tokenizer(str(folder), kind), FAMILIES[kind]
        return self._picture_tokenizer


def _listed(images) -> list:
    if images is None:
        return []
    return [images] if isinstance(images, Image.Image) else list(images)


UniXProcessor.register_for_auto_class()
