"""Temperature scaling: a classifier that says how sure it may be (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scipy.optimize import brentq
from torch import Tensor, nn

from ftcli.errors import DataError, RunError
from ftcli.evaluation.logits import EvalOutputs
from ftcli.results import format_count

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Between these a temperature is looked for, and as far beyond as the spread of the logits lies beyond 1: that of a
network that has hardly begun may be a thousandth, and that of one that grew without bounds many thousands."""


def fit_temperature(outputs: EvalOutputs, location: str) -> float:
    """The temperature with the lowest mean cross-entropy of logits / temperature, to 1e-6 of itself.

    The cross-entropy is convex in 1 / temperature, so its slope, in float64, is 0 once at most. Raises DataError that
    begins with `where` for outputs that no temperature between COLDEST and HOTTEST fits best, the one or the other
    multiplied by the spread of the logits, the root of their mean variance within an image.
    """
    logits, labels = outputs.logits.double(), outputs.labels
    true_class_logits = logits.gather(1, labels[:, None])[:, 0]

    def slope(log_temperature: float) -> float:
        probabilities = (logits / math.exp(log_temperature)).softmax(1)
        return float(((probabilities * logits).sum(1) - true_class_logits).mean())

    logit_spread = math.sqrt(float(logits.var(1, correction=0).mean())) or 1.0
    min_temperature, max_temperature = (
        MIN_TEMPERATURE * min(1.0, logit_spread),
        MAX_TEMPERATURE * max(1.0, logit_spread),
    )
    num_images_text = format_count(len(labels), "image")
    if slope(math.log(max_temperature)) >= 0:
        raise DataError(
            f"{location}: no temperature up to {max_temperature:.3g} helps on the {num_images_text} of val: the network is no better there "
            "than one that gives every class the same probability; train it further first"
        )
    if slope(math.log(min_temperature)) <= 0:
        raise DataError(
            f"{location}: no temperature down to {min_temperature:.3g} is cold enough for the {num_images_text} of val: nearly all are "
            "right, so the surer the network, the better; keep more images for validation"
        )
    return math.exp(brentq(slope, math.log(min_temperature), math.log(max_temperature), xtol=1e-9))


def find_last_layer(model: nn.Module, head: str) -> str:
    """The name of the layer that gives a network's logits: the head, or the last layer in it."""
    module = model.get_submodule(head)
    return f"{head}.{len(module) - 1}" if isinstance(module, nn.Sequential) else head


def divide_layer_by(state: Mapping[str, Tensor], layer: str, temperature: float) -> dict[str, Tensor]:
    """The same tensors, with a layer's weight and bias divided by a temperature, so that what it gives is divided by
    it too. What may follow it, as SqueezeNet's rectifier and mean do, has to commute with that."""
    scaled = {
        name: (state[name].double() / temperature).to(state[name].dtype) for name in _layer_tensor_names(state, layer)
    }
    return {**state, **scaled}


def check_calibrated_logits(
    before: EvalOutputs, after: EvalOutputs, temperature: float, is_full_precision: bool
) -> None:
    """Raise RunError unless the new logits are the old ones over the temperature, and the top classes the same.

    Logits may differ by 1e-4 of the largest one, or by 2e-2 where not `exact`: computed in bfloat16. Which of two is
    the top class is left to rounding where they differ by less than 1e-5 of it, or by 2e-2.
    """
    max_abs_logit = float(before.logits.abs().max())
    max_difference = float((after.logits * temperature - before.logits).abs().max())
    top1, top2 = before.logits.topk(2).values.T
    has_clear_winner = top1 - top2 > max_abs_logit * (1e-5 if is_full_precision else 2e-2)
    has_changed = (after.logits.argmax(1) != before.logits.argmax(1)) & has_clear_winner
    if max_difference > max_abs_logit * (1e-4 if is_full_precision else 2e-2) or bool(has_changed.any()):
        raise RunError(
            f"--calibrate: the network with its head divided by {temperature:.6g} gives other logits than the old one "
            f"divided by it (by up to {max_difference:.2g}); nothing was written, please report this with the recipe"
        )


def _layer_tensor_names(state: Mapping[str, Tensor], layer: str) -> tuple[str, ...]:
    return tuple(name for name in (f"{layer}.weight", f"{layer}.bias") if name in state)
