"""What of a frozen part a stage would keep, and whether that is faster than to compute it in every epoch."""

from __future__ import annotations

from ftcli.data.transforms import ImageTransform
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.recipe.schema import Stage
from ftcli.runtime import measure_free_memory

ALWAYS_CACHE_BYTES = 64 * 1024
"""Bytes an image up to which reading what is kept is always faster than computing it."""
MEMORY_BYTES_PER_SECOND, DISK_BYTES_PER_SECOND = 1.5e9, 2e8
"""Bytes a second at which kept values are read that the memory holds, and that come from the disk; cautious ones."""


def count_views(stage: Stage, transform: ImageTransform) -> int:
    """How many looks at each training image are kept, where any are."""
    if not transform.is_random:
        return 1
    num_views = stage.epochs if stage.cache == "off" or stage.cache.views == "all" else stage.cache.views
    return min(num_views, stage.epochs)


def estimate_cache_gain(
    frozen_backbone: FrozenBackbone, num_forward_images: int, num_records: int, num_bytes: int
) -> tuple[float, float]:
    """Seconds that the frozen part takes when it is computed for each of the `looks` that a stage takes at images, and
    when it is computed for `records` of them, of `size` bytes in all, that are kept and read."""
    seconds_per_image = frozen_backbone.measure_seconds_per_image()
    bytes_per_second = MEMORY_BYTES_PER_SECOND if num_bytes < measure_free_memory() / 2 else DISK_BYTES_PER_SECOND
    return num_forward_images * seconds_per_image, num_records * seconds_per_image + (
        num_bytes + num_forward_images * frozen_backbone.row_bytes
    ) / bytes_per_second


def count_forward_images(epochs: int, num_train: int, num_val: int) -> int:
    """How many images a stage looks at: in each epoch all, and before the first those of the validation."""
    return epochs * (num_train + num_val) + num_val
