"""A probe that was folded into one linear layer answers as it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ftcli.features.folding import probe_to_linear
from ftcli.features.probes import FeatureSet, fit_probe


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_probe_to_linear_predicts_the_same_classes(name: str, classes: int) -> None:
    digits = load_digits()
    selected = np.flatnonzero(digits.target < classes)[:500]
    features, labels = (17 * digits.data[selected] - 40).astype(np.float32), digits.target[selected].astype(np.int64)
    splits = np.array(["train", "test"])[np.arange(len(selected)) % 2]
    probe = fit_probe(name, "pixels", FeatureSet(features, labels, splits), [str(n) for n in range(classes)], seed=0)
    weight, bias = probe_to_linear(probe, 64)
    assert (weight.shape, bias.shape) == ((classes, 64), (classes,))
    assert weight.dtype == bias.dtype == torch.float32
    outputs = torch.nn.functional.linear(torch.from_numpy(features), weight, bias)
    assert np.array_equal(outputs.argmax(1).numpy(), probe.predict(features))
    if name == "logistic":
        expected = probe.estimator.predict_proba(features.astype(np.float64))
        assert np.abs(outputs.softmax(1).numpy() - expected).max() < 1e-5
    else:
        margins = probe.estimator.decision_function(features.astype(np.float64))
        output_margins = (outputs[:, 1] - outputs[:, 0] if classes == 2 else outputs).numpy()
        assert np.abs(output_margins - margins).max() < 1e-4
