"""Pairs of OpenMoji images that are edits of each other, and edits made on the layers of a drawing.

Pairs that were drawn differ in one attribute of their code points: skin tone, gender, age, hair, the way that somebody
faces, the time of a clock. Every drawing has named layers (color, skin, hair, line) and is painted from a palette of a
few colours, so that line art, drawings without outlines and other colours of a part are exact too: a picture made so is
named by its drawing and the change, as `1F34E+line` or `1F34E+red>blue`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

from tokenization.demo_corpus import FEMALE, JOINER, MALE

RIGHT = 0x27A1  # joined to a person: who faces right
SKIN = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
HAIR = {0x1F9B0: "red", 0x1F9B1: "curly", 0x1F9B2: "bald", 0x1F9B3: "white"}
PEOPLE = {  # code point -> (its representative, gender, age)
    0x1F9D1: (0x1F9D1, "person", "adult"),
    0x1F468: (0x1F9D1, "man", "adult"),
    0x1F469: (0x1F9D1, "woman", "adult"),
    0x1F9D2: (0x1F9D1, "person", "child"),
    0x1F466: (0x1F9D1, "man", "child"),
    0x1F467: (0x1F9D1, "woman", "child"),
    0x1F9D3: (0x1F9D1, "person", "old"),
    0x1F474: (0x1F9D1, "man", "old"),
    0x1F475: (0x1F9D1, "woman", "old"),
    0x1FAC5: (0x1FAC5, "person", ""),
    0x1F934: (0x1FAC5, "man", ""),
    0x1F478: (0x1FAC5, "woman", ""),
    0x1FAC4: (0x1FAC4, "person", ""),
    0x1FAC3: (0x1FAC4, "man", ""),
    0x1F930: (0x1FAC4, "woman", ""),
    0x1F385: (0x1F385, "man", ""),
    0x1F936: (0x1F385, "woman", ""),
    0x1F57A: (0x1F57A, "man", ""),
    0x1F483: (0x1F57A, "woman", ""),
}
CLOCKS = range(0x1F550, 0x1F568)  # one to twelve o'clock, then half past each
FAMILIES = {  # colours of OpenMoji's palette, the lighter first
    "red": ("#ea5a47", "#d22f27"),
    "blue": ("#92d3f5", "#61b2e4"),
    "green": ("#b1cc33", "#5c9e31"),
    "yellow": ("#fcea2b", "#f1b31c"),
    "orange": ("#f4aa41", "#e27022"),
    "purple": ("#b399c8", "#8967aa"),
    "pink": ("#ffa7c0", "#e67a94"),
    "brown": ("#a57939", "#6a462f"),
    "grey": ("#d0cfce", "#9b9b9a"),
}
HAIR_COLOURS = {
    "black": "#3f3f3f",
    "blond": "#f1b31c",
    "red": "#e27022",
    "grey": "#9b9b9a",
    "brown": "#a57939",
    "blue": "#61b2e4",
}
KINDS = (
    "skin",
    "gender",
    "age",
    "hair",
    "direction",
    "clock",
    "hair colour",
    "recolour",
    "line art",
    "colour in",
    "outline",
)
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Edit:
    """Edit from image `source` to image `target`; `values` fill the wordings of its kind, as ("dark",) of "skin"."""

    kind: str
    source: str
    target: str
    values: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique id."""
        return f"{self.kind}:{self.source}:{self.target}"


def attributes_of(key: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, str]] | None:
    """Code points -> concept, and attributes by kind; None for people of several skin tones."""
    tones = {c for c in key if c in SKIN}
    people = [c for c in key if c in PEOPLE]
    if len(tones) > 1:
        return None
    found = {"skin": SKIN[tones.pop()] if tones else "yellow"}
    found["hair"] = next((HAIR[c] for c in key if c in HAIR), "brown")
    found["direction"] = "right" if RIGHT in key else "left"
    found["gender"] = "woman" if FEMALE in key else "man" if MALE in key else "person"
    left = [c for c in key if c not in SKIN and c not in HAIR and c not in (JOINER, FEMALE, MALE, RIGHT)]
    if len(people) == 1:
        representative, gender, age = PEOPLE[people[0]]
        left[left.index(people[0])] = representative
        found["age"] = age
        if not {FEMALE, MALE} & set(key):
            found["gender"] = gender
    return tuple(left), found


def drawn_edits(keys: Mapping[str, tuple[int, ...]]) -> Iterator[Edit]:
    """Edits in both directions between drawings that differ in one attribute. `keys`: a drawing's id -> its code
    points."""
    alike: dict[tuple[int, ...], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for name, key in keys.items():
        described = attributes_of(key)
        if described:
            alike[described[0]].append((name, described[1]))
    for members in alike.values():
        for (source, before), (target, after) in permutations(members, 2):
            changed = [kind for kind in before.keys() | after.keys() if before.get(kind) != after.get(kind)]
            if len(changed) == 1:
                yield Edit(changed[0], source, target, (after[changed[0]],))
    clocks = {name: key[0] for name, key in keys.items() if len(key) == 1 and key[0] in CLOCKS}
    for source, target in permutations(clocks, 2):
        hour, half = (clocks[target] - CLOCKS[0]) % 12 + 1, clocks[target] - CLOCKS[0] >= 12
        yield Edit("clock", source, target, (f"{hour}:{'30' if half else '00'}",))


def layer_edits(name: str, svg: str) -> Iterator[Edit]:
    """Edits made by changing the layers of a drawing."""
    layers = layers_of(svg)
    if layers["line"] and layers["color"] | layers["skin"] | layers["hair"]:
        yield Edit("line art", name, f"{name}+line")
        yield Edit("colour in", f"{name}+line", name)
        yield Edit("outline", name, f"{name}+fill")
    for before in FAMILIES:
        if not layers["skin"] and layers["color"] & set(FAMILIES[before]):
            for after in FAMILIES:
                if after != before:
                    yield Edit("recolour", name, f"{name}+{before}>{after}", (before, after))
    for colour, paint in HAIR_COLOURS.items():
        if layers["hair"] and layers["hair"] != {paint}:
            yield Edit("hair colour", name, f"{name}+hair={colour}", (colour,))


def layers_of(svg: str) -> dict[str, set[str]]:
    """Colours of the layers color, skin, hair and line, in lower case, with six digits."""
    import xml.etree.ElementTree as ElementTree

    found: dict[str, set[str]] = {"color": set(), "skin": set(), "hair": set(), "line": set()}
    for layer in ElementTree.fromstring(svg):
        text = ElementTree.tostring(layer, encoding="unicode")
        found.setdefault((layer.get("id") or "").split("-")[0], set()).update(map(_long, re.findall(COLOUR, text)))
    return found


def changed_svg(svg: str, change: str) -> str:
    """SVG with one of the changes of `layer_edits`, as `line`, `fill`, `red>blue` or `hair=black`."""
    import xml.etree.ElementTree as ElementTree

    ElementTree.register_namespace("", SVG[1:-1])
    root = ElementTree.fromstring(svg)
    for layer in list(root):
        is_line = (layer.get("id") or "").startswith("line")
        if change in ("line", "fill") and is_line != (change == "line"):
            root.remove(layer)
        elif change.startswith("hair="):
            if layer.get("id") == "hair":
                _paint(layer, lambda _: HAIR_COLOURS[change.removeprefix("hair=")])
        elif ">" in change and not is_line:
            before, after = (FAMILIES[name] for name in change.split(">"))
            _paint(layer, lambda colour: dict(zip(before, after)).get(colour, colour))  # noqa: B023
    return ElementTree.tostring(root, encoding="unicode")


COLOUR = r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b"


def _paint(layer, colour_of) -> None:
    for element in layer.iter():
        for name in ("fill", "stroke"):
            if re.fullmatch(COLOUR, element.get(name, "")):
                element.set(name, colour_of(_long(element.get(name))))


def _long(colour: str) -> str:
    digits = colour[1:].lower()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))
