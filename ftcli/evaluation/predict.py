"""From a checkpoint and any number of images to predictions, as they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.input_paths import InputPaths
from ftcli.data.loader import ImageLoader, LoaderConfig, max_workers
from ftcli.data.samples import Sample
from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.results import Prediction, PredictionError, PredictResult, Progress, Reporter, format_count, format_duration
from ftcli.runs.run_dir import find_checkpoint
from ftcli.runtime import choose_device


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """What the user asked of `ftcli predict`. Where `batch_size` or `workers` is None, its recipe tells."""

    checkpoint: Path
    images: InputPaths
    top: int
    batch_size: int | None
    num_workers: int | None
    device: str


def predict(args: PredictArgs, reporter: Reporter) -> PredictResult:
    """Load a checkpoint and hand back its predictions, none of which is made yet.

    Raises CheckpointError or RecipeError for a checkpoint or device that cannot be used.
    """
    path, note = find_checkpoint(args.checkpoint)
    if note:
        reporter.info(note)
    loaded = load_classifier(path, choose_device(args.device))
    classifier, data_config = loaded.classifier, loaded.recipe_file.recipe.data
    batch_size = args.batch_size or data_config.batch_size
    num_workers = max_workers(data_config.num_workers if args.num_workers is None else args.num_workers)
    if args.images.num_paths is not None:
        num_workers = min(
            num_workers, -(-args.images.num_paths // batch_size) - 1
        )  # a single batch is sooner read than handed over
    top = min(args.top, len(classifier.classes))
    outcomes = stream_predictions(classifier, args.images, top, batch_size, num_workers, reporter)
    return PredictResult(path, classifier.classes, top, outcomes)


def stream_predictions(
    classifier: Classifier, images: InputPaths, top: int, batch_size: int, num_workers: int, reporter: Reporter
) -> Iterator[Prediction | PredictionError]:
    """The `top` classes of one image after another, `batch_size` computed at a time; memory does not grow with their
    number. The reporter is warned of every image that cannot be read, and told the pace.

    Predictions come in the order of the images, failures before those of their batch. What is in the same batch
    changes a probability by no more than float arithmetic does, which is below 1e-5 in float32.
    """
    num_done, start_time = 0, time.monotonic()
    loader_config = LoaderConfig(Path(), "skip", num_workers, classifier.device.type == "cuda")
    loader = ImageLoader((), classifier.transform, batch_size, loader_config)
    with loader:
        for batch in loader.stream(_unlabelled_samples(images.paths)):
            for corrupt in batch.skipped:
                reporter.warn(f"{corrupt.path}: {corrupt.reason}")
                yield PredictionError(corrupt.path, corrupt.reason)
            if batch.paths:
                yield from map(Prediction, batch.paths, classifier.predict_top_k(batch.images, top))
            num_done += len(batch.paths) + len(batch.skipped)
            rate = num_done / (time.monotonic() - start_time)
            if images.num_paths is not None:
                reporter.update_progress(Progress("predicting", num_done, max(num_done, images.num_paths), rate))
    reporter.info(
        f"{format_count(num_done, 'image')} in {format_duration(time.monotonic() - start_time)}, {rate:.0f} images/s"
    )


def _unlabelled_samples(paths: Iterable[str]) -> Iterator[Sample]:
    return (Sample(path, label=-1) for path in paths)
