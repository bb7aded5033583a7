"""The machine that runs ftcli: devices and number formats, random seeds, memory."""

from ftcli.runtime.device import (
    autocast,
    choose_device,
    count_cores,
    measure_seconds,
    resolve_precision,
    single_threaded,
    supports_bfloat16,
)
from ftcli.runtime.memory import disable_malloc_trim, measure_free_memory, raise_on_oom
from ftcli.runtime.seeds import derive_seed, hash_to_unit, seed_step

__all__ = [
    "autocast",
    "choose_device",
    "count_cores",
    "derive_seed",
    "disable_malloc_trim",
    "hash_to_unit",
    "measure_free_memory",
    "measure_seconds",
    "raise_on_oom",
    "resolve_precision",
    "seed_step",
    "single_threaded",
    "supports_bfloat16",
]
