"""How this process gets its memory from the operating system, and when it gives some back."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let the C library hand freed tensors' memory to the next tensors instead of back to the operating system.

    Training allocates and frees the same megabytes in every step. By default glibc maps and unmaps them each time, and
    the kernel fills the pages with zeros again. Elsewhere than with glibc this does nothing. Blocks of many sizes leave
    gaps between them, so shapes are kept few, see `layer`, and :func:`return_freed_memory` follows now and then.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give freed memory back to the operating system, once a round; its pages are zeroed again when they are needed.

    Without this the gaps of one round add to those of the next, and a client that waits for its next round holds what
    only training needs. Elsewhere than with glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
