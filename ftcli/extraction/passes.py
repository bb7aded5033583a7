"""What a network gives for all images of a source: taken from the cache, or from one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig, default_num_workers
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError
from ftcli.evaluation.head_features import cut_at_head, open_head_features
from ftcli.extraction.args import ExtractArgs
from ftcli.features.buffer import FeatureBuffer
from ftcli.features.extractor import Extractor, FeatureBatch
from ftcli.features.pipeline import FeaturePipeline
from ftcli.recipe.schema import Data
from ftcli.results import Progress, ProgressTask, Reporter


def fill_buffer(
    args: ExtractArgs,
    data: Data,
    dataset: ImageDataset,
    extractor: Extractor,
    buffer: FeatureBuffer,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Take the features of all images into a spool, split by split; returns the sentences of those left out.

    Raises DataError where not one image can be read, and what the extractor, the cache and reading images raise.
    """
    pipeline = _cut_at_head(args, extractor)
    num_workers = data.num_workers if args.num_workers is None else args.num_workers
    loader_config = LoaderConfig(
        dataset.root,
        data.on_corrupt_image,
        default_num_workers(num_workers, extractor.device, dataset),
        rehash=args.rehash,
    )
    num_images = sum(map(len, dataset.splits.values()))
    skipped: list[str] = []
    start_time = time.monotonic()
    batches = (
        _compute_features(dataset, loader_config, args.batch_size or data.batch_size, extractor)
        if pipeline is None
        else _read_head_features(dataset, loader_config, pipeline, extractor, reporter)
    )
    for split, batch in batches:
        skipped += [skipped_image.message for skipped_image in batch.skipped]
        if batch.paths:
            buffer.add(batch, split)
        num_done = len(buffer) + len(skipped)
        reporter.update_progress(
            Progress("extracting", num_done, num_images, num_done / (time.monotonic() - start_time))
        )
    if not len(buffer):
        raise DataError(f"extract: not one of {num_images} images can be read; the first: {skipped[0]}")
    return tuple(skipped)


def _cut_at_head(args: ExtractArgs, extractor: Extractor) -> FeaturePipeline | None:
    """Return the model cut at its head if the head's input is the only layer and the cache is used."""
    if not args.use_cache or [layer.kind for layer in extractor.layers] != ["input"]:
        return None
    head_path = extractor.layers[0].target
    return cut_at_head(extractor.model, head_path, extractor.preprocessing, extractor.device, extractor.precision)


def _compute_features(
    dataset: ImageDataset, loader_config: LoaderConfig, batch_size: int, extractor: Extractor
) -> Iterator[tuple[str, FeatureBatch]]:
    """The features of each split, from a pass of the network over its images."""
    transform = build_eval_transform(extractor.preprocessing)
    for split, samples in dataset.splits.items():
        num_workers = min(
            loader_config.num_workers, -(-len(samples) // batch_size) - 1
        )  # a single batch is sooner read than handed over
        split_config = replace(loader_config, num_workers=num_workers, pin_memory=extractor.device.type == "cuda")
        with ImageLoader(samples, transform, batch_size, split_config) as loader:
            for batch in extractor.extract(loader):
                yield split, batch


def _read_head_features(
    dataset: ImageDataset,
    loader_config: LoaderConfig,
    pipeline: FeaturePipeline,
    extractor: Extractor,
    reporter: Reporter,
) -> Iterator[tuple[str, FeatureBatch]]:
    """The features of each split, at the cut before the head. All splits are computed as one, for each that begins anew
    ends with a batch that is not full."""
    samples = [sample for split in dataset.splits.values() for sample in split]
    with open_head_features(pipeline, samples, loader_config, ProgressTask("extracting", reporter)) as loader:
        start = 0
        for split, split_samples in dataset.splits.items():
            for batch in extractor.pool_cached(loader, range(start, start + len(split_samples))):
                yield split, batch
            start += len(split_samples)
