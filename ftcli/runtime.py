"""The machine that runs ftcli: devices and number formats, random seeds, memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from ftcli.errors import RecipeError, RunError

RngKey = tuple[int | str, ...]
"""The key of a random draw, such as (seed, stage, view): with the path of an image it determines the augmentation."""


def choose_device(requested: str) -> torch.device:
    """Return the device named auto, cpu, cuda, cuda:N or mps.

    auto is the first available of cuda, mps and cpu. Raises RecipeError for a device that is not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if requested == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    kind, _, index = requested.partition(":")
    if kind not in available or (index and not index.isdigit()):
        raise RecipeError(f"--device: {requested!r} is not a device; give auto, cpu, cuda, cuda:1 or mps")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise RecipeError(f"--device: {requested!r} is not available on this machine; give auto or one of: {names}")
    return torch.device(requested)


def supports_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware computes in bfloat16 natively, so that it may be faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_native_support = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(has_native_support and device.type == "cpu")


def resolve_precision(requested: str, device: torch.device, measured: Mapping[str, str]) -> str:
    """Return the number format, float32 or bfloat16, of a recipe's `precision` on a device.

    `measured` maps device types (cpu, cuda) to the faster format. auto takes it where the hardware supports bfloat16;
    without a measurement auto is bfloat16 on a GPU that supports it, else float32.
    """
    if requested != "auto":
        return requested
    default = "bfloat16" if device.type == "cuda" else "float32"
    return measured.get(device.type, default) if supports_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context of a forward pass in a number format; auto is resolved without a measurement."""
    if resolve_precision(precision, device, {}) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def measure_seconds(
    function: Callable[[], object], device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that a call takes, including its work on a GPU."""
    start_time = clock()
    function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start_time


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded() -> Iterator[Callable[[], None]]:
    """Run torch with one thread in this context, and in each thread that calls the yielded function first."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(num_threads)


def derive_seed(*keys: int | str) -> int:
    """Return a seed from 0 to 2^63 - 1 that depends on the keys alone: not on state, call order, process or machine."""
    text = "\0".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def hash_to_unit(*keys: int | str) -> float:
    """Return a number in [0, 1) that depends on the keys alone and is uniform over keys."""
    return derive_seed(*keys) / 2**63


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout uses on a device.

    torch.manual_seed would seed those of all device types and store a traceback for each: 0.3 ms, as long as a small
    training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


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
