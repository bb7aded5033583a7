"""Predictions of a checkpoint for a stream of images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.input_paths import InputPaths
from ftcli.data.loader import ImageLoader, LoaderConfig, resolve_num_workers
from ftcli.data.samples import Sample
from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.results import Prediction, PredictionError, PredictResult, Progress, Reporter, format_count, format_duration
from ftcli.runs.run_dir import find_checkpoint
from ftcli.runtime import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """Arguments of `ftcli predict`; a None for `batch_size` or `num_workers` means the recipe's value."""

    checkpoint: Path
    images: InputPaths
    top: int
    batch_size: int | None
    num_workers: int | None
    device: str


def predict(args: PredictArgs, reporter: Reporter) -> PredictResult:
    """Load a checkpoint and return its predictions, which are computed lazily.

    Raises CheckpointError or RecipeError for an invalid checkpoint or device.
    """
    path, note = find_checkpoint(args.checkpoint)
    if note:
        logger.info(note)
    loaded = load_classifier(path, choose_device(args.device))
    classifier, data_config = loaded.classifier, loaded.recipe_file.recipe.data
    batch_size = args.batch_size or data_config.batch_size
    num_workers = resolve_num_workers(data_config.num_workers if args.num_workers is None else args.num_workers)
    if args.images.num_paths is not None:
        num_batches = -(-args.images.num_paths // batch_size)
        num_workers = min(num_workers, num_batches - 1)  # a worker does not pay off for a single batch
    top = min(args.top, len(classifier.classes))
    outcomes = stream_predictions(classifier, args.images, top, batch_size, num_workers, reporter)
    return PredictResult(path, classifier.classes, top, outcomes)


def stream_predictions(
    classifier: Classifier, images: InputPaths, top: int, batch_size: int, num_workers: int, reporter: Reporter
) -> Iterator[Prediction | PredictionError]:
    """Yield the `top` classes of each image, in batches, with constant memory; warn of corrupt images.

    Predictions are in the order of the images, errors before the predictions of their batch. Other images in a batch
    change probabilities by rounding only, below 1e-5 in float32.
    """
    num_done, start_time = 0, time.monotonic()
    loader_config = LoaderConfig(Path(), "skip", num_workers, classifier.device.type == "cuda")
    loader = ImageLoader((), classifier.transform, batch_size, loader_config)
    with loader:
        for batch in loader.stream(_unlabeled_samples(images.paths)):
            for corrupt in batch.skipped:
                logger.warning(f"{corrupt.path}: {corrupt.reason}")
                yield PredictionError(corrupt.path, corrupt.reason)
            if batch.paths:
                yield from map(Prediction, batch.paths, classifier.predict_top_k(batch.images, top))
            num_done += len(batch.paths) + len(batch.skipped)
            rate = num_done / (time.monotonic() - start_time)
            if images.num_paths is not None:
                reporter.update_progress(Progress("predicting", num_done, max(num_done, images.num_paths), rate))
    logger.info(
        f"{format_count(num_done, 'image')} in {format_duration(time.monotonic() - start_time)}, {rate:.0f} images/s"
    )


def _unlabeled_samples(paths: Iterable[str]) -> Iterator[Sample]:
    return (Sample(path, label=-1) for path in paths)
