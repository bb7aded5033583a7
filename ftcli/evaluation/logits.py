"""From a data set to per-image outputs: the one way, for validation, tests and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftcli.data.batches import BatchLoader
from ftcli.errors import DataError
from ftcli.evaluation.classifier import Classifier
from ftcli.results import Progress, Reporter
from ftcli.runtime import autocast

FlipDims = tuple[int, ...]
"""The dimensions of images (n, 3, height, width) that are turned round; none for the images as they are."""

NO_TTA: tuple[FlipDims, ...] = ((),)
TTA: dict[str, tuple[FlipDims, ...]] = {"flips": ((), (3,), (2,), (2, 3))}
"""What may be averaged over: as it is, mirrored left to right, top to bottom, and both."""


@dataclass(frozen=True)
class EvalOutputs:
    """Logits (n, classes) in float32, labels (n) and paths of n images, on the CPU, and what was left out."""

    logits: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[str, ...]


ForwardFn = Callable[[tuple[Tensor, ...]], Tensor]
"""From the values of a batch to its logits (n, classes) in float32, the network in the mode that it is in."""


def predict_logits(
    model: nn.Module,
    forward: ForwardFn,
    loader: BatchLoader,
    reporter: Reporter,
    task: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvalOutputs | None:
    """The outputs for every image of a feed, in its order, the network in eval mode; None if `stop` became true.

    The same batches give the same bits on the CPU. Raises DataError if every image is broken.
    """
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    skipped: list[str] = []
    num_batches, num_done = loader.count_batches(), 0
    with torch.inference_mode():
        for batch in loader.batches():
            skipped += batch.skip_messages
            if batch.paths:
                logits.append(forward(batch.inputs).cpu())
                labels.append(batch.labels)
                paths += batch.paths
            num_done += 1
            reporter.update_progress(Progress(task, num_done, num_batches))
            if should_stop():
                return None
    if not paths:
        raise DataError(f"{task}: not one of {len(loader.samples)} images can be read; the first: {skipped[0]}")
    return EvalOutputs(torch.cat(logits), torch.cat(labels), tuple(paths), tuple(skipped))


def image_forward(classifier: Classifier, views: tuple[FlipDims, ...] = NO_TTA) -> ForwardFn:
    """How a whole network looks at a batch of images.

    With several views an image's logits are the logarithms of the probabilities that they give on average; they are
    taken one after the other, so that memory does not grow with their number.
    """

    def forward(inputs: tuple[Tensor, ...]) -> Tensor:
        (images,) = inputs
        if len(views) == 1:
            return classifier.compute_logits(images)
        log_prob_sum: Tensor | None = None
        for flip_dims in views:
            log_probs = classifier.compute_logits(images.flip(flip_dims)).cpu().double().log_softmax(1)
            log_prob_sum = log_probs if log_prob_sum is None else torch.logaddexp(log_prob_sum, log_probs)
        assert log_prob_sum is not None
        return (log_prob_sum - math.log(len(views))).float()

    return forward


def suffix_forward(suffix: nn.Module, classifier: Classifier) -> ForwardFn:
    """How the part of a network behind a cut looks at the values that cross it."""

    def forward(inputs: tuple[Tensor, ...]) -> Tensor:
        on_device = (value.to(classifier.device, non_blocking=True) for value in inputs)
        with autocast(classifier.device, classifier.precision):
            logits: Tensor = suffix(*on_device)
        return logits.float()

    return forward
