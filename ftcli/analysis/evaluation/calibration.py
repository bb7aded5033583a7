"""A new checkpoint whose probabilities can be trusted, made from an old one and its validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ftcli.analysis.evaluation.measurement import Case, gather_own, run_split
from ftcli.inference.calibration import check_scaling, find_last_layer, fit_temperature, scale_layer
from ftcli.inference.metrics import measure_accuracy, measure_calibration, measure_loss
from ftcli.inference.outputs import Outputs
from ftcli.models.states import put_tensors
from ftcli.planning import plan_recipe
from ftcli.results import Reporter, Scaling, tell_count
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ftcli.runtime import autocast

_FEW = 100  # images of val, with fewer of which a temperature is a guess


def calibrate(case: Case, target: Path, reporter: Reporter) -> tuple[Case, Scaling, Outputs]:
    """Fit a temperature on the validation images of a checkpoint's own recipe, each seen as it is, divide the network's
    last layer by it, and write the result to `target`.

    Returns the case of the new checkpoint, what the temperature changed, and the new outputs for val. The new
    checkpoint is as any other, so whatever reads it is calibrated; its logits on val are proven to be the old ones over
    the temperature before it is written. Raises DataError where val is not there or no temperature fits it best,
    RunError if the proof fails or the file cannot be written.
    """
    old = case.checkpoint
    images = case.images
    if case.question.data is not None:
        images = gather_own(case.document, old, case.path, reporter)
    before = run_split(case, images, "val", reporter)
    if len(before.paths) < _FEW:
        reporter.warn(
            f"--calibrate: {case.path} has {tell_count(len(before.paths), 'image')} of val only; a temperature from so "
            "few may be far from the best one for other images"
        )
    temperature = fit_temperature(before, "--calibrate")
    head = plan_recipe(case.document, old.preprocessing).head.path
    state = scale_layer(old.state, find_last_layer(case.classifier.model, head), temperature)
    put_tensors(case.classifier.model, state)
    after = run_split(case, images, "val", reporter)
    with autocast(case.classifier.device, case.classifier.precision):
        exact = not torch.is_autocast_enabled(case.classifier.device.type)
    check_scaling(before, after, temperature, exact)
    made: Checkpoint = replace(
        old,
        kind="best",
        metrics={"val_loss": measure_loss(after), "val_accuracy": measure_accuracy(after)},
        origin={**old.origin, "temperature": temperature, "calibrated_from": old.digest},
        state=state,
        progress=None,
    )
    write_checkpoint(made, target)
    reporter.say(f"The calibrated checkpoint is {target}")
    scaling = Scaling(
        temperature=temperature,
        split="val",
        images=len(after.paths),
        log_loss_before=measure_loss(before),
        log_loss_after=measure_loss(after),
        error_before=measure_calibration(before),
        error_after=measure_calibration(after),
        checkpoint=target,
    )
    return replace(case, path=target, checkpoint=read_checkpoint(target)), scaling, after
