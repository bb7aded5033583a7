"""Temperature scaling of classifiers (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from ftcli.errors import DataError, RunError
from ftcli.evaluation.eval_setup import EvalSetup, load_checkpoint_dataset, predict_split
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import compute_accuracy, compute_calibration_error, compute_loss
from ftcli.models.state_dict import copy_state_dict
from ftcli.results import Reporter, TemperatureScaling, format_count
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ftcli.runtime import autocast

logger = logging.getLogger(__name__)

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Search bounds, widened by the standard deviation of the logits: a barely trained network may need a temperature of
0.001, one with huge logits 10,000."""
_MIN_VAL_IMAGES = 100


def calibrate(
    setup: EvalSetup, output_path: Path, reporter: Reporter
) -> tuple[EvalSetup, TemperatureScaling, EvalOutputs]:
    """Fit a temperature on the val split of the checkpoint's recipe and write a checkpoint with a scaled head.

    The last layer is divided by the temperature, so that everything that loads the checkpoint is calibrated. The new
    logits of val are compared with the old ones before the checkpoint is written. Returns the setup of the new
    checkpoint, the temperature with its effect, and the new outputs of val. Raises DataError without val or a best
    temperature, RunError if the comparison fails or the file cannot be written.
    """
    old_checkpoint, classifier, dataset = setup.checkpoint, setup.classifier, setup.dataset
    if setup.args.data is not None:
        dataset = load_checkpoint_dataset(setup.recipe_file, old_checkpoint, setup.checkpoint_path, reporter)
    outputs_before = predict_split(setup, dataset, "val", reporter)
    if len(outputs_before.paths) < _MIN_VAL_IMAGES:
        logger.warning(
            f"--calibrate: {setup.checkpoint_path} has only {format_count(len(outputs_before.paths), 'image')} in val, "
            f"so the temperature is uncertain; use at least {_MIN_VAL_IMAGES}"
        )
    temperature = fit_temperature(outputs_before, "--calibrate")
    last_layer = find_last_layer(classifier.model, old_checkpoint.head_path)
    state = divide_layer_by(old_checkpoint.state, last_layer, temperature)
    copy_state_dict(classifier.model, state)
    outputs_after = predict_split(setup, dataset, "val", reporter)
    with autocast(classifier.device, classifier.precision):
        is_full_precision = not torch.is_autocast_enabled(classifier.device.type)
    check_calibrated_logits(outputs_before, outputs_after, temperature, is_full_precision)
    new_checkpoint: Checkpoint = replace(
        old_checkpoint,
        kind="best",
        metrics={"val_loss": compute_loss(outputs_after), "val_accuracy": compute_accuracy(outputs_after)},
        origin={**old_checkpoint.origin, "temperature": temperature, "calibrated_from": old_checkpoint.digest},
        state=state,
        progress=None,
    )
    write_checkpoint(new_checkpoint, output_path)
    logger.info(f"Calibrated checkpoint: {output_path}")
    scaling = TemperatureScaling(
        temperature=temperature,
        split="val",
        images=len(outputs_after.paths),
        log_loss_before=compute_loss(outputs_before),
        log_loss_after=compute_loss(outputs_after),
        error_before=compute_calibration_error(outputs_before),
        error_after=compute_calibration_error(outputs_after),
        checkpoint=output_path,
    )
    return replace(setup, checkpoint_path=output_path, checkpoint=read_checkpoint(output_path)), scaling, outputs_after


def fit_temperature(outputs: EvalOutputs, location: str) -> float:
    """Return the temperature with the lowest mean cross-entropy of logits / temperature, with a relative error of 1e-6.

    The cross-entropy is convex in 1 / temperature, so that its slope, computed in float64, has at most one zero. Raises
    DataError that begins with `location` if the zero is outside the search bounds.
    """
    logits, labels = outputs.logits.double(), outputs.labels
    true_class_logits = logits.gather(1, labels[:, None])[:, 0]

    def slope(log_temperature: float) -> float:
        probabilities = (logits / math.exp(log_temperature)).softmax(1)
        return float(((probabilities * logits).sum(1) - true_class_logits).mean())

    logit_std = math.sqrt(float(logits.var(1, correction=0).mean())) or 1.0
    min_temperature = MIN_TEMPERATURE * min(1.0, logit_std)
    max_temperature = MAX_TEMPERATURE * max(1.0, logit_std)
    num_images_text = format_count(len(labels), "image")
    if slope(math.log(max_temperature)) >= 0:
        raise DataError(
            f"{location}: no temperature up to {max_temperature:.3g} improves the log loss on the {num_images_text} of "
            "val, where the classifier is not better than uniform probabilities; train it further"
        )
    if slope(math.log(min_temperature)) <= 0:
        raise DataError(
            f"{location}: the log loss on the {num_images_text} of val decreases down to a temperature of "
            f"{min_temperature:.3g}, because nearly all predictions are correct; use more validation images"
        )
    return math.exp(brentq(slope, math.log(min_temperature), math.log(max_temperature), xtol=1e-9))


def find_last_layer(model: nn.Module, head: str) -> str:
    """Return the name of the layer that computes the logits: the head or its last layer."""
    module = model.get_submodule(head)
    return f"{head}.{len(module) - 1}" if isinstance(module, nn.Sequential) else head


def divide_layer_by(state: Mapping[str, Tensor], layer: str, temperature: float) -> dict[str, Tensor]:
    """Return a state dict with the weight and bias of a layer divided by a temperature.

    Operations after the layer, such as ReLU and mean in SqueezeNet, must commute with the division.
    """
    names = (name for name in (f"{layer}.weight", f"{layer}.bias") if name in state)
    return {**state, **{name: (state[name].double() / temperature).to(state[name].dtype) for name in names}}


def check_calibrated_logits(
    before: EvalOutputs, after: EvalOutputs, temperature: float, is_full_precision: bool
) -> None:
    """Raise RunError unless the new logits are the old ones over the temperature, with the same predicted classes.

    Logits may differ by 1e-4 of the largest one, or by 2e-2 in bfloat16. Predicted classes may differ where the two
    largest logits are closer than 1e-5 of the largest one, or than 2e-2.
    """
    max_abs_logit = float(before.logits.abs().max())
    max_difference = float((after.logits * temperature - before.logits).abs().max())
    top1, top2 = before.logits.topk(2).values.T
    has_clear_winner = top1 - top2 > max_abs_logit * (1e-5 if is_full_precision else 2e-2)
    has_changed = (after.predicted != before.predicted) & has_clear_winner
    if max_difference > max_abs_logit * (1e-4 if is_full_precision else 2e-2) or bool(has_changed.any()):
        raise RunError(
            f"--calibrate: dividing the head by {temperature:.6g} does not divide the logits by it (differences of up "
            f"to {max_difference:.2g}); nothing was written, please report this with the recipe"
        )
