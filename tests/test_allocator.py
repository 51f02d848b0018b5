"""Freed buffers are kept: by the C library's own account of its memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Takes 20 MB and gives them back; prints what is then mapped for single buffers, and the heap.
TAKE = """
import ctypes, sys
from trainables.allocator import keep_freed_memory
from trainables.tune import PackTrainable
kept = sys.argv[1] == "keep" and keep_freed_memory()
if sys.argv[1] == "small":
    kept = keep_freed_memory(8 * 2**20, 64 * 2**20)
if sys.argv[1] == "worker":
    kept = PackTrainable.setup(object.__new__(PackTrainable), {}) is None
library = ctypes.CDLL(None)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
library.mallinfo2.restype = Account
library.malloc.restype = ctypes.c_void_p
before = library.mallinfo2()
buffer = library.malloc(ctypes.c_size_t(20_000_000))
taken = library.mallinfo2()
library.free(ctypes.c_void_p(buffer))
after = library.mallinfo2()
print(kept, taken.hblkhd - before.hblkhd, after.arena - before.arena)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("word", ["keep", "worker", "small", "leave"])
def test_freed_buffers_stay_in_the_heap(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKE, word], capture_output=True, text=True, check=True
    )
    kept, mapped, heap = done.stdout.split()
    if word in ("small", "leave"):  # larger than what is kept
        assert kept == str(word == "small") and int(mapped) >= 20_000_000 and int(heap) < 1_000_000
    else:
        assert kept == "True" and int(mapped) == 0 and int(heap) >= 19_000_000
