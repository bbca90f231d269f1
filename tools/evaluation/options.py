"""Option that an answer to a multiple-choice question names, exactly: not the article "a", nor a part of a word.

Harnesses look for option letters anywhere in an answer, so that "A dog is on the grass" becomes option A. Here an
answer names an option when it is that letter, alone or set apart as answers do it ("B.", "(B)", "B: a cat", "The answer
is B"), or the option's text. Whatever can be read in two ways names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINE = re.compile(r"^\s*\(?([A-Z])(?:\)|[.:)])\s+(.*\S)\s*$")
_SAYS = re.compile(
    r"^(?:the |my )?(?:correct |right |best |final )?(?:answer|option|choice)"
    r"(?: is| would be|:)?:?\s*(?:option\s+)?(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_LETTER = re.compile(r"^[(\[]?([A-Za-z])[)\]]?[.:,]?$")
_LETTER_THEN = re.compile(r"^(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[.:)])\s*(.*)$", re.DOTALL)
_YES_NO = re.compile(r"^(yes|no)\b", re.IGNORECASE)


def options_in(prompt: str) -> dict[str, str]:
    """Options of a question: its lines "A. text", "(A) text" or "A) text", from A on without a gap; else none."""
    found: dict[str, str] = {}
    for line in prompt.splitlines():
        match = _LINE.match(line)
        if match and match[1] == chr(ord("A") + len(found)):
            found[match[1]] = match[2]
    return found if len(found) >= 2 else {}


def choose(answer: str, options: Mapping[str, str]) -> str | None:
    """Letter of the option that an answer names, or None."""
    text = _bare(answer)
    match = _SAYS.match(text)
    candidates = {_named(text, options), *([_named(_bare(match[1]), options)] if match else [])} - {None}
    return candidates.pop() if len(candidates) == 1 else None


def yes_or_no(answer: str) -> str | None:
    """The answer "yes" or "no", if an answer begins with that word and does not contain the other, else None."""
    text = _bare(answer)
    saying = _SAYS.match(text)
    match = _YES_NO.match(_bare(saying[1]) if saying else text)
    words = set(re.findall(r"[a-z]+", text.lower())) & {"yes", "no"}
    return match[1].lower() if match and len(words) == 1 else None


def _named(text: str, options: Mapping[str, str]) -> str | None:
    letter = _LETTER.match(text)
    if letter and (letter[1].isupper() or len(text) > 1) and letter[1].upper() in options:
        return letter[1].upper()
    same = [key for key, option in options.items() if _plain(option) == _plain(text)]
    if _plain(text) and len(same) == 1:
        return same[0]
    first = _LETTER_THEN.match(text)
    if first:
        key, rest = first[1] or first[2] or first[3], first[4]
        others = [other for other, option in options.items() if other != key and _plain(option) == _plain(rest)]
        if key in options and not others and not _other_letters(rest, key, options):
            return key
    return None


def _other_letters(text: str, key: str, options: Mapping[str, str]) -> bool:
    """Whether another option's letter stands alone in a text, as in "A. or B."."""
    return any(other != key and re.search(rf"(?:\({other}\)|\b{other}[.:)]|\b{other}$)", text) for other in options)


def _bare(text: str) -> str:
    return text.strip().strip("*\"'`").strip()


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
