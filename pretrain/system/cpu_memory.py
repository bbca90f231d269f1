"""glibc allocator settings for CPU runs: keep freed memory in the process.

torch's CPU allocator is malloc, and glibc returns blocks above 128 kB to the system at every free: each activation is
then mapped, zeroed and unmapped again, which took up to 40 % of the time of a small convolutional decoder.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGEST, USUAL = 2**30, 2**17  # bytes; the latter is glibc's own


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds to 1 GiB. Returns False with another C library; calling it again is free.

    What is kept is in pieces: where blocks of hundreds of MB come and go, the process grows well beyond what it uses.
    """
    return _set_thresholds(LARGEST)


def return_freed_memory() -> bool:
    """Undo `keep_freed_memory`: freed memory returns to the system at once. For measuring and saving memory."""
    return _set_thresholds(USUAL)


def _set_thresholds(size: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, size) and mallopt(M_TRIM_THRESHOLD, size))
