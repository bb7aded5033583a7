"""What a network gives for all images of a source: taken from the cache, or from one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ftcli.analysis.extraction.wishes import Wish
from ftcli.data.loading import Loader, share_cores
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import ImageSet
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError
from ftcli.features.cache import Source
from ftcli.features.extraction import Extractor, FeatureBatch
from ftcli.features.spool import Spool
from ftcli.inference.inputs import HeadInputs, open_inputs
from ftcli.recipe.schema import Data
from ftcli.results import Progress, Reporter


def fill_spool(
    wish: Wish, data: Data, images: ImageSet, extractor: Extractor, spool: Spool, reporter: Reporter
) -> tuple[str, ...]:
    """Take the features of all images into a spool, split by split; returns the sentences of those left out.

    Raises DataError where not one image can be read, and what the extractor, the cache and reading images raise.
    """
    inputs = _open_inputs(wish, extractor)
    total = sum(map(len, images.splits.values()))
    skipped: list[str] = []
    began = time.monotonic()
    for split in images.splits:
        for batch in _take(wish, data, images, split, extractor, inputs, reporter):
            skipped += [one.sentence for one in batch.left_out]
            if batch.paths:
                spool.add(batch, split)
            done = len(spool) + len(skipped)
            reporter.advance(Progress("extracting", done, total, done / (time.monotonic() - began)))
    if not len(spool):
        raise DataError(f"extract: not one of {total} images can be read; the first: {skipped[0]}")
    return tuple(skipped)


def _open_inputs(wish: Wish, extractor: Extractor) -> HeadInputs | None:
    """What finds the input of the head in the cache, where that is the one layer that is taken."""
    if not wish.cache or [layer.kind for layer in extractor.layers] != ["input"]:
        return None
    head = extractor.layers[0].target
    return open_inputs(extractor.model, head, extractor.preprocessing, extractor.device, extractor.precision)


def _take(
    wish: Wish,
    data: Data,
    images: ImageSet,
    split: str,
    extractor: Extractor,
    inputs: HeadInputs | None,
    reporter: Reporter,
) -> Iterator[FeatureBatch]:
    """The features of a split, from the cut before the head or from a pass of the network."""
    samples = images.splits[split]
    wanted = data.workers if wish.workers is None else wish.workers
    workers = share_cores(wanted, extractor.device, images)
    if inputs is not None:
        reading = Source(images.root, data.on_bad_image, workers, wish.verify)
        with inputs.open(samples, reading, reporter, f"extracting {split}") as feed:
            assert feed is not None  # nothing stops it
            yield from extractor.pool_feed(feed)
        return
    size, transform = wish.batch_size or data.batch_size, build_eval_transform(extractor.preprocessing)
    few = min(workers, -(-len(samples) // size) - 1)  # a single batch is sooner read than handed over
    files = ImageFiles(images.root, data.on_bad_image, few, pin_memory=extractor.device.type == "cuda")
    with Loader(samples, transform, size, files) as loader:
        yield from extractor.extract(loader)
