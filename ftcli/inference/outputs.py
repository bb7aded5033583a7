"""From a data set to per-image outputs: the one way, for validation, tests and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ftcli.data.loading import Loader
from ftcli.errors import DataError
from ftcli.inference.classifier import Classifier
from ftcli.results import Progress, Reporter


@dataclass(frozen=True)
class Outputs:
    """Logits (n, classes) in float32, labels (n) and paths of n images, on the CPU, and what was left out."""

    logits: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[str, ...]


def compute_outputs(
    classifier: Classifier,
    loader: Loader,
    reporter: Reporter,
    task: str,
    stop: Callable[[], bool] = lambda: False,
) -> Outputs | None:
    """The outputs for every image of a loader, in its order, the network in eval mode; None if `stop` became true.

    The same batches give the same bits on the CPU. Raises DataError if every image is broken.
    """
    classifier.model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    skipped: list[str] = []
    total, done = loader.count_batches(), 0
    with torch.inference_mode():
        for batch in loader.batches():
            skipped += batch.broken
            if batch.paths:
                logits.append(classifier.compute_logits(batch.images).cpu())
                labels.append(batch.labels)
                paths += batch.paths
            done += 1
            reporter.advance(Progress(task, done, total))
            if stop():
                return None
    if not paths:
        raise DataError(f"{task}: not one of {len(loader.samples)} images can be read; the first: {skipped[0]}")
    return Outputs(torch.cat(logits), torch.cat(labels), tuple(paths), tuple(skipped))
