"""A linear classifier on standardised features as one linear layer on the features themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftcli.features.probes import Probe


def probe_to_linear(probe: Probe, in_features: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, dimensions) and bias (classes), float32, of the linear layer that answers as a probe does that
    is a linear SVM or logistic regression.

    The standardisation is folded in, in float64, and all is rounded once. The softmax of the layer's outputs is what
    logistic regression holds probable; an SVM's outputs are its margins. Of two classes a probe has one margin m, and
    the layer gives -m/2 and m/2: their difference is m, so the softmax is again the probe's.
    """
    return estimator_to_linear(probe.estimator, len(probe.classes), in_features)


def estimator_to_linear(estimator: Any, num_classes: int, in_features: int) -> tuple[Tensor, Tensor]:
    """The same of a scikit-learn Pipeline of a StandardScaler and a linear classifier that knows `classes` classes."""
    scaler, classifier = estimator.named_steps["scaler"], estimator.named_steps["classifier"]
    assert classifier.classes_.tolist() == list(range(num_classes))  # train has every class: check_probe_labels
    weight = np.asarray(classifier.coef_, dtype=np.float64) / scaler.scale_
    assert weight.shape[1] == in_features
    bias = np.asarray(classifier.intercept_, dtype=np.float64) - weight @ scaler.mean_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
