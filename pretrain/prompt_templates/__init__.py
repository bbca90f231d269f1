"""Prompt templates as data: a YAML file with lists by language, shipped beside this module or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.prompts import DEFAULT_TEMPLATES, PromptTemplates
from pretrain.system.errors import UserError
from pretrain.system.strict_yaml import read_yaml

DIRECTIONS = ("text_to_image", "image_to_text")


def read_prompt_templates(name: str) -> PromptTemplates:
    """Read the templates of a shipped name or a path, languages in their order; '' stands for those of pretraining.

    Raises UserError, in one line that names the file, for whatever is not as in the shipped files.
    """
    if not name:
        return DEFAULT_TEMPLATES
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
    path = shipped.get(name, Path(name))
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.prompt_templates {name}: cannot be read ({error.__class__.__name__}): give a YAML file, or {' or '.join(shipped)}"
        ) from None
    except ValueError as error:
        raise UserError(f"data.prompt_templates {path}: not YAML: {error}") from None
    if not isinstance(values, dict) or set(values) != set(DIRECTIONS):
        found = list(values) if isinstance(values, dict) else type(values).__name__
        raise UserError(
            f"data.prompt_templates {path}: holds {found}: give {' and '.join(DIRECTIONS)}, lists by language each"
        )
    for direction, languages in values.items():
        if not isinstance(languages, dict) or not all(isinstance(texts, list) for texts in languages.values()):
            raise UserError(f"data.prompt_templates {path}: {direction} is not lists by language, as in en: [...]")
    lists: dict[str, Any] = {
        direction: tuple(text for texts in values[direction].values() for text in texts) for direction in DIRECTIONS
    }
    try:
        return PromptTemplates(**lists)
    except UserError as error:
        raise UserError(f"data.prompt_templates {path}: {error}") from None
