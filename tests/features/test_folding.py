"""A probe that was folded into one linear layer answers as it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ftcli.features.folding import fold_head
from ftcli.features.probing import Codes, fit_probe


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_every_image_is_given_the_class_that_the_probe_gives_it(name: str, classes: int) -> None:
    digits = load_digits()
    kept = np.flatnonzero(digits.target < classes)[:500]
    features, labels = (17 * digits.data[kept] - 40).astype(np.float32), digits.target[kept].astype(np.int64)
    splits = np.array(["train", "test"])[np.arange(len(kept)) % 2]
    probe = fit_probe(name, "pixels", Codes(features, labels, splits), [str(n) for n in range(classes)], seed=0)
    weight, bias = fold_head(probe, 64)
    assert (weight.shape, bias.shape) == ((classes, 64), (classes,))
    assert weight.dtype == bias.dtype == torch.float32
    outputs = torch.nn.functional.linear(torch.from_numpy(features), weight, bias)
    assert np.array_equal(outputs.argmax(1).numpy(), probe.predict(features))
    if name == "logistic":
        wanted = probe.estimator.predict_proba(features.astype(np.float64))
        assert np.abs(outputs.softmax(1).numpy() - wanted).max() < 1e-5
    else:
        margins = probe.estimator.decision_function(features.astype(np.float64))
        given = (outputs[:, 1] - outputs[:, 0] if classes == 2 else outputs).numpy()
        assert np.abs(given - margins).max() < 1e-4
