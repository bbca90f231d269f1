"""Code for other checkouts of this project, whose modules may have former names."""

from __future__ import annotations

import argparse


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, `base` the absolute folder of another checkout or None; a wrong one is wrong usage."""
    arguments = parser.parse_args()
    if arguments.base is not None:
        if not (arguments.base / "pretrain/train.py").is_file():
            parser.error(f"--base {arguments.base}: no checkout of this project (it has no pretrain/train.py)")
        arguments.base = arguments.base.absolute()
    return arguments


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
