"""Memory of the machine and of this process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ftcli.errors import RunError


@contextmanager
def raise_on_oom() -> Iterator[None]:
    """Raise RunError in place of torch's own error when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunError(
            f"out of memory ({str(error).splitlines()[0]}); lower data.batch_size or data.image_size, or choose a "
            "smaller model"
        ) from error


def measure_free_memory() -> int:
    """Return the bytes that can be allocated without swapping, file caches included."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of all memory is a cautious guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def disable_malloc_trim() -> None:
    """Make this process reuse freed memory instead of returning it to the system.

    By default glibc maps every large tensor afresh and the system clears each of its pages: a training step on the CPU
    takes 1.3 to 1.8 times as long. Has no effect except on Linux with glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 2**20)
