"""What of a frozen part a stage would keep, and whether that is faster than to compute it in every epoch."""

from __future__ import annotations

from ftcli.data.transforms import ImageTransform
from ftcli.features.prefix import Prefix
from ftcli.recipe.schema import Stage
from ftcli.runtime import measure_free_memory

SMALL = 64 * 1024
"""Bytes an image up to which reading what is kept is always faster than computing it."""
FAST, SLOW = 1.5e9, 2e8
"""Bytes a second at which kept values are read that the memory holds, and that come from the disk; cautious ones."""


def count_views(stage: Stage, transform: ImageTransform) -> int:
    """How many looks at each training image are kept, where any are."""
    if not transform.is_random:
        return 1
    wanted = stage.epochs if stage.cache == "off" or stage.cache.views == "all" else stage.cache.views
    return min(wanted, stage.epochs)


def weigh_ways(prefix: Prefix, looks: int, records: int, size: int) -> tuple[float, float]:
    """Seconds that the frozen part takes when it is computed for each of the `looks` that a stage takes at images, and
    when it is computed for `records` of them, of `size` bytes in all, that are kept and read."""
    forward = prefix.measure()
    rate = FAST if size < measure_free_memory() / 2 else SLOW
    return looks * forward, records * forward + (size + looks * prefix.row_bytes) / rate


def count_looks(epochs: int, train: int, val: int) -> int:
    """How many images a stage looks at: in each epoch all, and before the first those of the validation."""
    return epochs * (train + val) + val
