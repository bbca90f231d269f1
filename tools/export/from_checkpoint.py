"""Export of a training checkpoint to a Hugging Face folder: weights, code, tokenizers and card, or only its text
path."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from model.config import MODEL_TYPES
from model.prompts import TURN_END
from pretrain.checkpoint import read_model, read_state
from pretrain.system.disk import writing
from pretrain.system.errors import UserError
from tools.export.chat_template import chat_template

MARKS = ("config.json", "unix_prompts.json")  # files that mark an earlier export, beside its code
CODE_MARKS = ("modeling_uni_x.py", "modeling_unix.py")
CODE = Path(__file__).resolve().parents[2] / "model" / "hf"


def export_text(checkpoint: Path, output: Path) -> None:
    """Write the text path of a verified checkpoint as a plain folder. Raises UserError for layers that no base family
    has."""
    state, config = read_state(checkpoint), read_model(checkpoint)
    weights = partial(write_weights, checkpoint, config=config, text_only=True)
    write_plain(output, config, checkpoint / "tokenizer.json", f"after {state['step']} steps", weights)


def export_text_of(folder: Path, output: Path) -> None:
    """The same from an export, also a tuned or merged one. Raises UserError for an incomplete export."""
    from tools.export.safetensors_shards import write_shards
    from tools.export.text_only import of_text
    from tools.export.text_weights import read_configuration, text_weights

    config = read_configuration(folder)
    if output.resolve() == folder.resolve():
        raise UserError(f"{output}: is the export that is read: give another --output")
    described, tensors = text_weights(folder, config)

    def weights(temporary: Path) -> str:
        write_shards(temporary, list(of_text(config, described)), of_text(config, tensors))
        return str(described[0][1].dtype).removeprefix("torch.")

    write_plain(output, config, folder / "tokenizer.json", f"as the export {folder.resolve().name} has it", weights)


def write_plain(output: Path, config, tokenizer: Path, history: str, weights: Callable[[Path], str]) -> None:
    """Write the plain folder; `weights` writes them to a folder and returns their dtype as a word."""
    from tools.export.model_card import text_licence
    from tools.export.text_only import plain_configuration, write_card

    values = plain_configuration(config, "")  # validated before anything is written
    check_output(output)
    with published(output) as temporary:
        values["dtype"] = weights(temporary)
        write_tokenizer(temporary, tokenizer, config)
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_generation(temporary, config)
        # template readers other than transformers do not know these tags
        template = chat_template().replace("{% generation %}", "").replace("{% endgeneration %}", "")
        assert "generation %}" not in template and len(template) < len(chat_template())
        (temporary / "chat_template.jinja").write_text(template, encoding="utf-8")
        write_card(temporary, config, history, text_licence(config))


UNFINISHED = ".unfinished_export"  # marks a folder of an unfinished export, locked while it is written


@contextmanager
def published(output: Path) -> Iterator[Path]:
    """Temporary folder that is renamed to `output` when it is complete, and removed otherwise.

    An export that was killed leaves its folder, OUTPUT.partial, which the next one to `output` takes away. Raises UserError
    where something else has that name, and where another export is writing it.
    """
    from tokenization.files import replace_folder

    temporary = output.with_name(output.name + ".partial")
    with writing(temporary):
        lock = _taken(temporary, output)
    try:
        with writing(temporary):
            yield temporary
            (temporary / UNFINISHED).unlink()
            replace_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk
        lock.close()


def _taken(temporary: Path, output: Path) -> IO:
    """Create the temporary folder, for this process alone -> its open lock file."""
    mark = temporary / UNFINISHED
    if (
        temporary.is_symlink()
        or temporary.exists()
        and not mark.is_file()
        and (not temporary.is_dir() or any(temporary.iterdir()))
    ):
        raise UserError(f"{temporary}: is in the way, and no unfinished export: move it away, or give another --output")
    temporary.mkdir(parents=True, exist_ok=True)
    lock = open(mark, "a")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"{output}: another export is writing it: wait for that one, or give another --output"
        ) from None
    for path in temporary.iterdir():
        if path != mark:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


def export(checkpoint: Path, output: Path, vq_name: str = "", results: Sequence[Path] = ()) -> None:
    """Write the export of a verified checkpoint folder. Raises UserError for a wrong image tokenizer or output.

    `results` are files of figures for the model card, as the tools of this repository write them.
    """
    from model.prompts import PromptTemplates
    from tokenization.vq import load_vq
    from tools.export.model_card import captions_to_draw, model_card, run_of

    state = read_state(checkpoint)
    if "made_from" in state:
        raise UserError(
            f"{checkpoint}: is a start that tools/convert_from_hf.py made, which has learned no picture: train from it with "
            "run.init_from, and export that run"
        )
    config = read_model(checkpoint)
    prompts = (checkpoint / "unix_prompts.json").read_text(encoding="utf-8")
    templates = PromptTemplates.from_json(prompts, str(checkpoint / "unix_prompts.json"))
    vq = load_vq(vq_name or state["vq"])
    if vq.fingerprint != templates.vq_fingerprint:
        raise UserError(
            f"{vq_name or state['vq']}: is not the image tokenizer of the training shards (fingerprint "
            f"{vq.fingerprint[:12]}, they have {templates.vq_fingerprint[:12]}): give that one with --vq"
        )
    vq.image_size = (
        templates.grid[0] * vq.downsample
    )  # of the training shards: --image-size need not be the tokenizer's own
    check_output(output)
    with published(output) as temporary:
        dtype = write_weights(checkpoint, temporary, config)
        write_tokenizer(temporary, checkpoint / "tokenizer.json", config)
        captions = captions_to_draw(run_of(checkpoint))
        shapes = picture_shapes(checkpoint, templates)
        write_configuration(temporary, config, dtype, shapes, state.get("skills"), captions)
        (temporary / "unix_prompts.json").write_text(prompts, encoding="utf-8")
        write_processor(temporary, config, vq.image_size, vq.downsample if templates.shapes else 0)
        vq.save(temporary / "vq")
        card = model_card(config, templates, vq, checkpoint, results)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write_weights(checkpoint: Path, folder: Path, config, text_only: bool = False) -> str:
    """Write weights under Qwen's names, read tensor by tensor from any layout -> their dtype as a word."""
    import torch

    from model.weight_names import to_hugging_face, training_names
    from pretrain.sharded_files import read_whole, stored_tensors
    from tools.export.safetensors_shards import write_shards
    from tools.export.text_only import is_of_text, of_text

    table, stored = training_names(config), stored_tensors(checkpoint)
    names = [name for name, parts in table.items() if not text_only or any(map(is_of_text, parts))]
    kept = (lambda weights: of_text(config, weights)) if text_only else iter
    absent = [name for name in names if name not in stored]
    if absent:
        raise UserError(f"{checkpoint}: holds no {absent[0]}: its model.json is of another model")
    shapes = ((name, torch.empty(stored[name][0], dtype=stored[name][1], device="meta")) for name in names)
    described = list(kept(to_hugging_face(config, shapes)))
    write_shards(folder, described, kept(to_hugging_face(config, read_whole(checkpoint, names))))
    return str(described[0][1].dtype).removeprefix("torch.")


def check_output(output: Path) -> None:
    """Raises UserError unless `output` is new, empty, or an export, which may be replaced."""
    if output.is_dir() and (not any(output.iterdir()) or is_export(output)):
        return
    if output.exists():
        raise UserError(f"{output} exists and is no export: remove it, or choose another --output")


def is_export(folder: Path) -> bool:
    """Whether this command wrote `folder`, in this or an earlier release."""
    if is_text_export(folder):
        return True
    code = any((folder / name).is_file() for name in CODE_MARKS)
    return code and all((folder / name).is_file() for name in MARKS)


def is_text_export(folder: Path) -> bool:
    """Whether this command wrote `folder` with --text-only."""
    card = folder / "README.md"
    return card.is_file() and "\n# Text path of a Uni-X model\n" in card.read_text(encoding="utf-8", errors="replace")


def write_code(folder: Path) -> None:
    """Write the code files of the model, each with a hash of all of them at its end, by which transformers tells
    releases apart.

    Of two folders of one last name transformers 5 runs the first one's code where the file that it is asked for is equal in
    both; 4.57 runs that file anew, and the first one's beside it.
    """
    code = sorted(CODE.glob("*_uni_x.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:16]
    for path in code:
        (folder / path.name).write_bytes(path.read_bytes() + f'CODE = "{digest}"\n'.encode())


def picture_shapes(checkpoint: Path, templates) -> list[dict]:
    """`picture_shapes` of config.json for a model of several shapes; empty for square images."""
    from model.hf.text_uni_x import TextEncoder
    from model.prompts import size_ids

    encode = TextEncoder((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    return [
        {"grid": list(grid), "ids": size_ids(number, encode, templates)} for number, grid in enumerate(templates.shapes)
    ]


def write_configuration(
    folder: Path,
    config,
    dtype: str,
    shapes: Sequence[dict] = (),
    skills: Sequence[str] | None = None,
    captions: Sequence[str] = (),
) -> None:
    """Write config.json with the auto map, generation_config.json, and the code files."""
    from model.families import family_of
    from pretrain.system.light_imports import import_transformers_configurations

    import_transformers_configurations()
    from model.hf.configuration_uni_x import AUTO_MAP

    write_code(folder)
    values = {
        "architectures": ["UniXForCausalLM"],
        "auto_map": AUTO_MAP,
        "model_type": MODEL_TYPES[0],
        "dtype": dtype,
        **config.to_dict(),
        **({"picture_shapes": list(shapes)} if shapes else {}),
        **(
            {} if skills is None else {"skills": list(skills)}
        ),  # what the data of its training teaches, as tools/serve.py tells it; of texts alone nothing, before that was recorded none
        **({"sample_prompts": list(captions)} if captions else {}),  # which the page of tools/serve.py offers
        "text_model_type": family_of(config),  # model type for a plain transformers class on the text path
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_generation(folder, config)


def write_generation(folder: Path, config) -> None:
    """Write generation_config.json: generation stops at the end of text and at the end of a turn."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    turn_ends = [token["id"] for token in added if token["content"] == TURN_END]
    stops = [config.eos_token_id, *turn_ends] if turn_ends else config.eos_token_id
    generation = {"eos_token_id": stops, "pad_token_id": config.eos_token_id, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer_json: Path, config) -> None:
    """Write tokenizer.json as it is, and the two files that let AutoTokenizer load it."""
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    tokens = {added["id"]: added["content"] for added in json.loads(tokenizer_json.read_text("utf-8"))["added_tokens"]}
    eos = tokens.get(config.eos_token_id)
    if eos is None:
        raise UserError(f"{tokenizer_json}: has no added token with the model's end-of-text id {config.eos_token_id}")
    special = {"eos_token": eos, "pad_token": eos}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings}
    settings |= {**special, "clean_up_tokenization_spaces": False}
    settings["model_input_names"] = ["input_ids", "attention_mask"]  # Qwen's models know no token_type_ids
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def write_processor(folder: Path, config, image_size: int, pixels_per_code: int = 0) -> None:
    """Write processor_config.json and the chat template. pixels_per_code: of the image tokenizer, for a model of
    several shapes."""
    names = ("image_token_offset", "codebook_size", "vision_start_token_id", "vision_end_token_id", "eos_token_id")
    values = {
        "processor_class": "UniXProcessor",
        "auto_map": {"AutoProcessor": "processing_uni_x.UniXProcessor"},
        **{name: getattr(config, name) for name in names},
        "image_size": image_size,
        **({"pixels_per_code": pixels_per_code} if pixels_per_code else {}),
    }
    (folder / "processor_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
