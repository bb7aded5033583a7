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
    wanted = data.num_workers if wish.num_workers is None else wish.num_workers
    source = Source(images.root, data.on_corrupt_image, share_cores(wanted, extractor.device, images), wish.verify)
    total = sum(map(len, images.splits.values()))
    skipped: list[str] = []
    began = time.monotonic()
    taken = (
        _take(images, source, wish.batch_size or data.batch_size, extractor)
        if inputs is None
        else _take_inputs(images, source, inputs, extractor, reporter)
    )
    for split, batch in taken:
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


def _take(images: ImageSet, source: Source, size: int, extractor: Extractor) -> Iterator[tuple[str, FeatureBatch]]:
    """The features of each split, from a pass of the network over its images."""
    transform = build_eval_transform(extractor.preprocessing)
    for split, samples in images.splits.items():
        few = min(source.num_workers, -(-len(samples) // size) - 1)  # a single batch is sooner read than handed over
        files = ImageFiles(source.root, source.on_corrupt_image, few, pin_memory=extractor.device.type == "cuda")
        with Loader(samples, transform, size, files) as loader:
            for batch in extractor.extract(loader):
                yield split, batch


def _take_inputs(
    images: ImageSet, source: Source, inputs: HeadInputs, extractor: Extractor, reporter: Reporter
) -> Iterator[tuple[str, FeatureBatch]]:
    """The features of each split, at the cut before the head. All splits are computed as one, for each that begins anew
    ends with a batch that is not full."""
    samples = [sample for split in images.splits.values() for sample in split]
    with inputs.open(samples, source, reporter, "extracting: frozen part") as feed:
        assert feed is not None  # nothing stops it
        begin = 0
        for split, own in images.splits.items():
            for batch in extractor.pool_feed(feed, range(begin, begin + len(own))):
                yield split, batch
            begin += len(own)
