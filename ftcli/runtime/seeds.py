"""Stateless random seeds."""

from __future__ import annotations

import hashlib

import torch

RngKey = tuple[int | str, ...]
"""The key of a random draw, such as (seed, stage, view): with the path of an image it determines the augmentation."""


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
