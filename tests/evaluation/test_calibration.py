"""The fitted temperature minimizes the log loss, and dividing the head by it divides the logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from ftcli.errors import DataError, RunError
from ftcli.evaluation.calibration import check_calibrated_logits, divide_layer_by, find_last_layer, fit_temperature
from ftcli.evaluation.logits import EvalOutputs
from ftcli.models.factory import create_model
from ftcli.models.heads import build_head, replace_head
from ftcli.models.state_dict import copy_state_dict
from ftcli.recipe.schema import Head
from tests.evaluation.conftest import create_outputs


def create_scaled_outputs(num_images: int, temperature: float) -> EvalOutputs:
    """Create outputs whose logits are `temperature` times those of a calibrated classifier."""
    generator = torch.Generator().manual_seed(num_images)
    logits = torch.randn(num_images, 4, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return create_outputs(logits * temperature, labels)


def test_fit_temperature_recovers_a_known_temperature() -> None:
    for temperature in (1e-6, 0.3, 1.0, 4.0, 1e5):
        assert fit_temperature(create_scaled_outputs(50_000, temperature), "--calibrate") == pytest.approx(
            temperature, rel=0.02
        )


def test_fit_temperature_ignores_an_outlier_class() -> None:
    outputs = create_scaled_outputs(2000, 3.0)
    with_outlier = replace(outputs, logits=torch.cat([outputs.logits, torch.full((2000, 1), -5000.0)], 1))
    expected = fit_temperature(outputs, "--calibrate")
    assert fit_temperature(with_outlier, "--calibrate") == pytest.approx(expected, rel=1e-6)


def test_fit_temperature_is_optimal() -> None:
    outputs = create_scaled_outputs(200, 3.0)
    best = fit_temperature(outputs, "--calibrate")

    def loss(temperature: float) -> float:
        return float(functional.cross_entropy(outputs.logits.double() / temperature, outputs.labels))

    assert all(loss(best) < loss(best * factor) for factor in (1e-2, 0.5, 0.999, 1.001, 2.0, 1e2))
    step = 1e-6
    assert loss(best * (1 - 2 * step)) > loss(best * (1 - step)) > loss(best)
    assert loss(best * (1 + 2 * step)) > loss(best * (1 + step)) > loss(best)


def test_fit_temperature_rejects_unbounded_optimum() -> None:
    good = create_outputs(torch.eye(3) * 5, torch.arange(3))
    with pytest.raises(DataError) as caught:
        fit_temperature(good, "--calibrate")
    assert str(caught.value) == (
        "--calibrate: the log loss on the 3 images of val decreases down to a temperature of 0.01, because "
        "nearly all predictions are correct; use more validation images"
    )
    for wrong, max_temperature in (
        (replace(good, logits=-good.logits), 236),
        (replace(good, logits=torch.zeros(3, 3)), 100),
    ):
        with pytest.raises(DataError) as caught:
            fit_temperature(wrong, "--calibrate")
        assert str(caught.value) == (
            f"--calibrate: no temperature up to {max_temperature} improves the log loss on the 3 images of val, where "
            "the classifier is not better than uniform probabilities; train it further"
        )


@pytest.mark.parametrize(
    ("name", "path", "head"),
    [
        ("squeezenet1_1", "classifier.1", Head(hidden=(), dropout=0.0)),
        ("squeezenet1_1", "classifier.1", Head(hidden=(8,), dropout=0.5)),
        ("shufflenet_v2_x0_5", "fc", Head(hidden=(8,), dropout=0.5)),
    ],
)
def test_divide_layer_by_divides_the_logits(name: str, path: str, head: Head) -> None:
    torch.manual_seed(0)
    model = create_model(name, False, 64).eval()
    replace_head(model, path, build_head(model.get_submodule(path), head, 3).eval())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scaled = divide_layer_by(state, find_last_layer(model, path), 2.5)
    assert sum(not torch.equal(scaled[key], state[key]) for key in state) >= 1
    copy_state_dict(model, scaled)
    with torch.inference_mode():
        after = model(images)
    assert before.abs().max() > 0
    assert np.allclose(after * 2.5, before, rtol=1e-5, atol=1e-7)


def test_check_calibrated_logits_rejects_other_logits() -> None:
    before = create_scaled_outputs(20, 1.0)
    check_calibrated_logits(before, replace(before, logits=before.logits / 2), 2.0, True)
    check_calibrated_logits(before, replace(before, logits=before.logits / 2 * 1.001), 2.0, False)
    tied = replace(before, logits=torch.tensor([[10.0, 9.99995]]))
    check_calibrated_logits(tied, replace(tied, logits=tied.logits.roll(1, 1) / 2), 2.0, True)
    near = replace(before, logits=torch.tensor([[10.0, 9.9996]]))
    with pytest.raises(RunError):
        check_calibrated_logits(near, replace(near, logits=near.logits.roll(1, 1) / 2), 2.0, True)
    for wrong in (before.logits, before.logits / 2 * 1.001, before.logits.roll(1, 1) / 2):
        with pytest.raises(RunError) as caught:
            check_calibrated_logits(before, replace(before, logits=wrong), 2.0, True)
        assert str(caught.value).startswith(
            "--calibrate: dividing the head by 2 does not divide the logits by it (differences of up to "
        )
