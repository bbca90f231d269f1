"""Code for other checkouts of this project, whose modules may have former names."""

from __future__ import annotations

import argparse
from pathlib import Path


def checkout(text: str) -> Path:
    """The folder of another checkout, absolute: a `type` of argparse, which says what is wrong."""
    if not (Path(text) / "pretrain/train.py").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no checkout of this project")
    return Path(text).absolute()


FIRST_OF = '''
import importlib
def first_of(*places):
    """What the first of these "module:name" is that this checkout has; a module without a name is imported."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            found = importlib.import_module(module)
            return getattr(found, name) if name else found
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this checkout has none of {', '.join(places)}")
'''
"""Defines `first_of`: put it at the head of code that is run with `python -c` in a checkout of any age."""
