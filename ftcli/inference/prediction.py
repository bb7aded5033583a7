"""From a checkpoint and any number of images to predictions, as they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftcli.data.finding import Found
from ftcli.data.loading import Loader, choose_workers
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.inference.classifier import Classifier, load_classifier
from ftcli.results import Failure, Prediction, Predictions, Progress, Reporter, tell_count, tell_duration
from ftcli.runs.folder import find_checkpoint
from ftcli.runtime import choose_device


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked of `ftcli predict`. Where `batch_size` or `workers` is None, its recipe tells."""

    checkpoint: Path
    images: Found
    top: int
    batch_size: int | None
    num_workers: int | None
    device: str


def predict(wish: Wish, reporter: Reporter) -> Predictions:
    """Load a checkpoint and hand back its predictions, none of which is made yet.

    Raises CheckpointError or RecipeError for a checkpoint or device that cannot be used.
    """
    path, note = find_checkpoint(wish.checkpoint)
    if note:
        reporter.say(note)
    classifier, _, document, _ = load_classifier(path, choose_device(wish.device))
    data = document.recipe.data
    size = wish.batch_size or data.batch_size
    num_workers = choose_workers(data.num_workers if wish.num_workers is None else wish.num_workers)
    if wish.images.count is not None:
        num_workers = min(
            num_workers, -(-wish.images.count // size) - 1
        )  # a single batch is sooner read than handed over
    top = min(wish.top, len(classifier.classes))
    outcomes = stream_predictions(classifier, wish.images, top, size, num_workers, reporter)
    return Predictions(path, classifier.classes, top, outcomes)


def stream_predictions(
    classifier: Classifier, images: Found, top: int, batch_size: int, num_workers: int, reporter: Reporter
) -> Iterator[Prediction | Failure]:
    """The `top` classes of one image after another, `batch_size` computed at a time; memory does not grow with their
    number. The reporter is warned of every image that cannot be read, and told the pace.

    Predictions come in the order of the images, failures before those of their batch. What is in the same batch
    changes a probability by no more than float arithmetic does, which is below 1e-5 in float32.
    """
    done, began = 0, time.monotonic()
    files = ImageFiles(Path(), "skip", num_workers, classifier.device.type == "cuda")
    loader = Loader((), classifier.transform, batch_size, files)
    with loader:
        for batch in loader.stream(_list_samples(images.paths)):
            for broken in batch.left_out:
                reporter.warn(f"{broken.path}: {broken.why}")
                yield Failure(broken.path, broken.why)
            if batch.paths:
                yield from map(Prediction, batch.paths, classifier.rank(batch.images, top))
            done += len(batch.paths) + len(batch.left_out)
            rate = done / (time.monotonic() - began)
            if images.count is not None:
                reporter.advance(Progress("predicting", done, max(done, images.count), rate))
    reporter.say(f"{tell_count(done, 'image')} in {tell_duration(time.monotonic() - began)}, {rate:.0f} images/s")


def _list_samples(paths: Iterable[str]) -> Iterator[Sample]:
    return (Sample(path, label=-1) for path in paths)
