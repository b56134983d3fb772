"""How this process gets its memory from the operating system."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let the C library hand freed tensors' memory to the next tensors instead of back to the operating system.

    Training allocates and frees the same megabytes in every step. By default glibc maps and unmaps them each time, and
    the kernel fills the pages with zeros again. Elsewhere than with glibc this does nothing. Blocks of many sizes may
    leave gaps between them, so shapes are kept few; see `layer`.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
