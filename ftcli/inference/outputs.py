"""From a data set to per-image outputs: the one way, for validation, tests and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftcli.data.batches import Feed
from ftcli.errors import DataError
from ftcli.inference.classifier import Classifier
from ftcli.results import Progress, Reporter
from ftcli.runtime import autocast

View = tuple[int, ...]
"""The dimensions of images (n, 3, height, width) that are turned round; none for the images as they are."""

AS_THEY_ARE: tuple[View, ...] = ((),)
VIEWS: dict[str, tuple[View, ...]] = {"flips": ((), (3,), (2,), (2, 3))}
"""What may be averaged over: as it is, mirrored left to right, top to bottom, and both."""


@dataclass(frozen=True)
class Outputs:
    """Logits (n, classes) in float32, labels (n) and paths of n images, on the CPU, and what was left out."""

    logits: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[str, ...]


Look = Callable[[tuple[Tensor, ...]], Tensor]
"""From the values of a batch to its logits (n, classes) in float32, the network in the mode that it is in."""


def compute_outputs(
    model: nn.Module,
    look: Look,
    feed: Feed,
    reporter: Reporter,
    task: str,
    stop: Callable[[], bool] = lambda: False,
) -> Outputs | None:
    """The outputs for every image of a feed, in its order, the network in eval mode; None if `stop` became true.

    The same batches give the same bits on the CPU. Raises DataError if every image is broken.
    """
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    skipped: list[str] = []
    total, done = feed.count_batches(), 0
    with torch.inference_mode():
        for batch in feed.batches():
            skipped += batch.broken
            if batch.paths:
                logits.append(look(batch.values).cpu())
                labels.append(batch.labels)
                paths += batch.paths
            done += 1
            reporter.advance(Progress(task, done, total))
            if stop():
                return None
    if not paths:
        raise DataError(f"{task}: not one of {len(feed.samples)} images can be read; the first: {skipped[0]}")
    return Outputs(torch.cat(logits), torch.cat(labels), tuple(paths), tuple(skipped))


def look_from(classifier: Classifier, views: tuple[View, ...] = AS_THEY_ARE) -> Look:
    """How a whole network looks at a batch of images.

    With several views an image's logits are the logarithms of the probabilities that they give on average; they are
    taken one after the other, so that memory does not grow with their number.
    """

    def look(values: tuple[Tensor, ...]) -> Tensor:
        (images,) = values
        if len(views) == 1:
            return classifier.compute_logits(images)
        total: Tensor | None = None
        for view in views:
            shares = classifier.compute_logits(images.flip(view)).cpu().double().log_softmax(1)
            total = shares if total is None else torch.logaddexp(total, shares)
        assert total is not None
        return (total - math.log(len(views))).float()

    return look


def look_through(suffix: nn.Module, classifier: Classifier) -> Look:
    """How the part of a network behind a cut looks at the values that cross it."""

    def look(values: tuple[Tensor, ...]) -> Tensor:
        moved = (value.to(classifier.device, non_blocking=True) for value in values)
        with autocast(classifier.device, classifier.precision):
            logits: Tensor = suffix(*moved)
        return logits.float()

    return look
