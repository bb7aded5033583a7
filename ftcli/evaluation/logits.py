"""The logits of a classifier for a split, computed in the same way for validation, tests and evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ftcli.data.batches import BatchLoader
from ftcli.errors import DataError
from ftcli.evaluation.classifier import Classifier
from ftcli.features.pipeline import ForwardFn
from ftcli.results import ProgressTask, format_count

FlipDims = tuple[int, ...]
"""The dimensions along which images (n, 3, height, width) are flipped."""

NO_TTA: tuple[FlipDims, ...] = ((),)
TTA: dict[str, tuple[FlipDims, ...]] = {"flips": ((), (3,), (2,), (2, 3))}
"""The test-time augmentations: each is a list of views whose probabilities are averaged."""


@dataclass(frozen=True)
class EvalOutputs:
    """Logits (n, classes) in float32, labels (n,) and paths of n images, on the CPU; messages of the skipped images."""

    logits: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[str, ...]

    @cached_property
    def probabilities(self) -> Tensor:
        """The softmax of the logits, (n, classes), in float64."""
        return self.logits.double().softmax(1)

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted classes, (n,)."""
        return self.logits.argmax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """The probabilities of the predicted classes, (n,), in float64."""
        return self.probabilities.max(1).values

    @cached_property
    def correct(self) -> Tensor:
        """The images whose predicted class is their true class, (n,), as booleans."""
        return self.predicted == self.labels


def predict_logits(model: nn.Module, forward: ForwardFn, loader: BatchLoader, task: ProgressTask) -> EvalOutputs:
    """Compute the outputs for all images of a loader, in its order, with the model in eval mode.

    The same batches give the same bits on a CPU. Raises DataError if all images are corrupt, and StopRequestedError.
    """
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    skipped: list[str] = []
    num_batches = loader.count_batches()
    with torch.inference_mode():
        for num_done, batch in enumerate(loader.batches(), 1):
            skipped += batch.skip_messages
            if batch.paths:
                logits.append(forward(batch.inputs).cpu())
                labels.append(batch.labels)
                paths += batch.paths
            task.update(num_done, num_batches)
    if not paths:
        raise DataError(
            f"{task.name}: none of {format_count(len(loader.samples), 'image')} can be read; the first: {skipped[0]}"
        )
    return EvalOutputs(torch.cat(logits), torch.cat(labels), tuple(paths), tuple(skipped))


def image_forward(classifier: Classifier, views: tuple[FlipDims, ...] = NO_TTA) -> ForwardFn:
    """Return a function that computes the logits of a batch of images with the whole network.

    With several views, the logits of an image are the logarithms of its mean probabilities. Views are computed one
    after another, so that memory does not grow with their number.
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
