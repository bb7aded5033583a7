"""Made-up outputs of classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ftcli.evaluation.logits import EvalOutputs


def create_outputs(logits: Any, labels: Any) -> EvalOutputs:
    """Create outputs from arrays (n, classes) and (n,)."""
    logits, labels = torch.as_tensor(logits).float(), torch.as_tensor(labels)
    return EvalOutputs(logits, labels, tuple(map(str, range(len(labels)))), ())


def create_good_outputs(rng: np.random.Generator, num_images: int, num_classes: int) -> EvalOutputs:
    """Create outputs of a fairly good classifier with roughly calibrated probabilities."""
    labels, logits = rng.integers(num_classes, size=num_images), 1.5 * rng.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 2.5
    return create_outputs(logits, labels)
