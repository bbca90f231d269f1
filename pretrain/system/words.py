"""Numbers with their nouns, for lines that people read."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2,700 rows`; plural: of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair: bytes of a command line that are not UTF-8, or escapes of JSON."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def shown(value: object, most: int = 80) -> str:
    """`repr` of a value for an error line, of at most so many characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes whole numbers of up to 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."
