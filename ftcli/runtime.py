"""Where and how numbers are computed: device, precision, random numbers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from ftcli.errors import RecipeError, RunError


def derive_seed(*keys: int | str) -> int:
    """A seed from 0 to 2^63 - 1 that depends on the keys alone: on no state, order of calls, process or machine."""
    text = "\0".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def hash_to_unit(*keys: int | str) -> float:
    """A number from 0 up to 1 that depends on the keys alone, uniform over keys."""
    return derive_seed(*keys) / 2**63


def choose_device(requested: str) -> torch.device:
    """The device called auto, cpu, cuda, cuda:N or mps.

    auto is the first of cuda, mps and cpu that is there. Raises RecipeError for a device that is not.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if requested == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    kind, _, index = requested.partition(":")
    known = ", ".join(name for name, is_available in available.items() if is_available)
    if kind not in available or (index and not index.isdigit()):
        raise RecipeError(f"--device: {requested!r} is no device; give auto, cpu, cuda, cuda:1 or mps")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise RecipeError(f"--device: {requested!r} is not on this machine; here are: {known}")
    return torch.device(requested)


def supports_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself, so that it may be faster than float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_native_support = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(has_native_support and device.type == "cpu")


def resolve_precision(requested: str, device: torch.device, measured: Mapping[str, str]) -> str:
    """The number format that a recipe's `precision` comes to on a device.

    auto is what was `found` the faster on its kind of device (cpu, cuda), if this one computes in that by itself.
    Where nothing was found it is bfloat16 on a GPU that has it, else float32.
    """
    if requested != "auto":
        return requested
    default = "bfloat16" if device.type == "cuda" else "float32"
    return measured.get(device.type, default) if supports_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass in a number format, or in that which auto comes to."""
    if resolve_precision(precision, device, {}) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def single_threaded() -> Iterator[Callable[[], None]]:
    """Let torch compute with one thread alone, in this thread and in each that first calls what is given."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def raise_on_oom() -> Iterator[None]:
    """Raise RunError instead of torch's own error where memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunError(
            f"memory ran out ({str(error).splitlines()[0]}); lower data.batch_size or data.image_size, or take a "
            "smaller network"
        ) from error


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout and the like draw from on a device. torch.manual_seed would seed those of all
    kinds of devices, and note where it was called from for each: 0.3 ms, as long as a small step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def measure_free_memory() -> int:
    """Bytes of memory that can be had without swapping, those that merely hold copies of files among them."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of all is a cautious guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def disable_malloc_trim() -> None:
    """Let this process keep the memory that it frees, and use it again, instead of giving it back to the system.

    glibc maps and unmaps every large tensor anew, and the system clears each page of it again: a training step on
    the CPU takes 1.3 to 1.8 times as long. Elsewhere than on Linux with glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 2**20)
