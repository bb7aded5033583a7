"""A new checkpoint whose probabilities can be trusted, made from an old one and its validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ftcli.evaluation.calibration import check_calibrated_logits, divide_layer_by, find_last_layer, fit_temperature
from ftcli.evaluation.eval_setup import EvalSetup, load_checkpoint_dataset, predict_split
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import compute_accuracy, compute_calibration_error, compute_loss
from ftcli.models.state_dict import copy_state_dict
from ftcli.results import Reporter, TemperatureScaling, format_count
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ftcli.runtime import autocast

_MIN_VAL_IMAGES = 100  # images of val, with fewer of which a temperature is a guess


def calibrate(
    setup: EvalSetup, output_path: Path, reporter: Reporter
) -> tuple[EvalSetup, TemperatureScaling, EvalOutputs]:
    """Fit a temperature on the validation images of a checkpoint's own recipe, each seen as it is, divide the network's
    last layer by it, and write the result to `target`.

    Returns the case of the new checkpoint, what the temperature changed, and the new outputs for val. The new
    checkpoint is as any other, so whatever reads it is calibrated; its logits on val are proven to be the old ones over
    the temperature before it is written. Raises DataError where val is not there or no temperature fits it best,
    RunError if the proof fails or the file cannot be written.
    """
    old_checkpoint = setup.checkpoint
    dataset = setup.dataset
    if setup.args.data is not None:
        dataset = load_checkpoint_dataset(setup.recipe_file, old_checkpoint, setup.checkpoint_path, reporter)
    outputs_before = predict_split(setup, dataset, "val", reporter)
    if len(outputs_before.paths) < _MIN_VAL_IMAGES:
        reporter.warn(
            f"--calibrate: {setup.checkpoint_path} has {format_count(len(outputs_before.paths), 'image')} of val only; a temperature from so "
            "few may be far from the best one for other images"
        )
    temperature = fit_temperature(outputs_before, "--calibrate")
    state = divide_layer_by(
        old_checkpoint.state, find_last_layer(setup.classifier.model, old_checkpoint.head_path), temperature
    )
    copy_state_dict(setup.classifier.model, state)
    outputs_after = predict_split(setup, dataset, "val", reporter)
    with autocast(setup.classifier.device, setup.classifier.precision):
        is_full_precision = not torch.is_autocast_enabled(setup.classifier.device.type)
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
    reporter.info(f"The calibrated checkpoint is {output_path}")
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
