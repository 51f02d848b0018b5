"""The C library's allocator, told to keep what a training frees.

A step takes and frees the same buffers as the one before. glibc gives each of 128 KiB and more back
to the system, which zeroes its pages anew when it is taken again: up to a fifth of a step's time.
"""

from __future__ import annotations

import ctypes

#: Largest buffer that is kept, which is the largest that glibc allows.
LARGEST = 32 * 2**20
#: Free memory at the top of the heap that is kept: all.
KEPT = 2**31 - 1
#: Names of the settings in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(largest: int = LARGEST, kept: int = KEPT) -> bool:
    """Keep freed buffers in this process from now on.

    Args:
        largest: bytes of a buffer that is kept, at most.
        kept: bytes at the top of the heap that are kept, at most.

    Returns:
        Whether the C library is one that can.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    settings = ((M_MMAP_THRESHOLD, largest), (M_TRIM_THRESHOLD, kept))
    return all(set_option(*setting) == 1 for setting in settings)
