"""How good a checkpoint is on a split, or on another folder of images."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
import torchvision
from sklearn.metrics import precision_recall_fscore_support

from ftcli.errors import CheckpointError
from ftcli.evaluation.bootstrap import BootstrapStats, compute_bootstrap_stats, compute_metrics
from ftcli.evaluation.calibrate import calibrate
from ftcli.evaluation.eval_setup import EvalRun, EvalSetup, EvaluateArgs, predict_split, run_eval, setup_eval
from ftcli.evaluation.evaluate_args import EvaluateOptions, calibrated_path, validate_args, validate_args_for_checkpoint
from ftcli.evaluation.logits import TTA, EvalOutputs
from ftcli.evaluation.metrics import (
    compute_accuracy,
    compute_calibration_error,
    compute_confusion_matrix,
    compute_loss,
    compute_reliability_bins,
)
from ftcli.evaluation.prediction_writer import write_predictions
from ftcli.evaluation.ranking import FloatArray
from ftcli.evaluation.report import ReportContext, write_report
from ftcli.evaluation.thresholds import find_thresholds
from ftcli.recipe.loading import dump_recipe
from ftcli.results import (
    ClassMetrics,
    ConfusedPair,
    EpochMetrics,
    EvaluatedImage,
    EvaluateResult,
    Reporter,
    TemperatureScaling,
    Threshold,
)
from ftcli.runs.history import read_history, run_of_checkpoint
from ftcli.statistics import wilson_interval
from ftcli.version import __version__

MAX_LISTED = 10
"""How many mistakes, doubtful hits and pairs of classes are listed."""


def evaluate(args: EvaluateArgs, options: EvaluateOptions, reporter: Reporter) -> EvaluateResult:
    """Measure a checkpoint, and write what was wished for.

    With `calibrate` it is the new checkpoint that is measured. Thresholds between two classes are chosen on val where
    another split of the recipe's own images is measured, and else on the measured images themselves. Raises RecipeError
    for a wish that cannot be fulfilled, before any image is read, and what `setup_eval`, `predict_split` and `calibrate`
    raise.
    """
    validate_args(options, args.tta)
    setup = setup_eval(args, reporter)
    validate_args_for_checkpoint(options, setup)
    history = _read_run_history(setup, reporter) if options.report is not None else ()
    scaling: TemperatureScaling | None = None
    val_outputs: EvalOutputs | None = None
    if options.calibrate:
        setup, scaling, val_outputs = calibrate(setup, options.out or calibrated_path(setup.checkpoint_path), reporter)
    known_val_outputs = val_outputs if args.tta is None and args.data is None else None
    if known_val_outputs is not None and setup.split == "val":
        eval_run = EvalRun(**vars(setup), outputs=known_val_outputs)
    else:
        eval_run = run_eval(setup, reporter)
    thresholds = _choose_thresholds(eval_run, options, known_val_outputs, reporter)
    evaluation = replace(_build_result(eval_run), thresholds=thresholds, scaling=scaling)
    if options.predictions is not None:
        write_predictions(eval_run.outputs, eval_run.classifier.classes, options.predictions)
        evaluation = replace(evaluation, predictions=options.predictions)
    if options.report is not None:
        evaluation = replace(evaluation, report=options.report)
        write_report(evaluation, _build_report_context(eval_run, history), options.report)
    return evaluation


def _choose_thresholds(
    eval_run: EvalRun, options: EvaluateOptions, val_outputs: EvalOutputs | None, reporter: Reporter
) -> tuple[Threshold, ...]:
    """The thresholds between two classes; `val` are the outputs for val where they are there already."""
    classes = eval_run.classifier.classes
    if len(classes) != 2:
        return ()
    if eval_run.args.data is not None or eval_run.split == "val":
        thresholds = find_thresholds(eval_run.outputs, eval_run.outputs, classes, options.min_recall, eval_run.split)
        if options.min_recall is not None and not thresholds:
            reporter.warn("--min-recall: all images are of one class, so there is no threshold between two to choose")
        return thresholds
    if val_outputs is None:
        num_val = len(eval_run.dataset.splits["val"])
        reporter.info(f"Thresholds are chosen on val, so its {num_val} images are measured too")
        val_outputs = predict_split(eval_run, eval_run.dataset, "val", reporter, eval_run.args.tta)
    return find_thresholds(val_outputs, eval_run.outputs, classes, options.min_recall, "val")


def _build_result(eval_run: EvalRun) -> EvaluateResult:
    classes, outputs = eval_run.classifier.classes, eval_run.outputs
    stats = compute_bootstrap_stats(outputs)
    confusion = tuple(tuple(int(count) for count in row) for row in compute_confusion_matrix(outputs))
    tta = eval_run.args.tta
    confidence = outputs.logits.double().softmax(1).max(1)[0]
    return EvaluateResult(
        checkpoint=eval_run.checkpoint_path,
        split=eval_run.split,
        images=len(outputs.paths),
        loss=compute_loss(outputs),
        accuracy=compute_accuracy(outputs),
        figures=compute_metrics(outputs, stats),
        per_class=_list_class_metrics(classes, outputs, stats),
        confusion=confusion,
        classes=classes,
        calibration={
            "expected_calibration_error": compute_calibration_error(outputs),
            "mean_confidence": float(confidence.mean()),
        },
        reliability=compute_reliability_bins(outputs),
        worst=_list_examples(classes, outputs, correct=False),
        unsure=_list_examples(classes, outputs, correct=True),
        confused=list_confused_pairs(classes, confusion),
        views=1 if tta is None else len(TTA[tta]),
        skipped=outputs.skipped,
    )


def _list_class_metrics(
    classes: tuple[str, ...], outputs: EvalOutputs, stats: BootstrapStats
) -> tuple[ClassMetrics, ...]:
    predicted = outputs.logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        outputs.labels.numpy(), predicted.numpy(), labels=range(len(classes)), zero_division=0.0
    )
    num_correct = compute_confusion_matrix(outputs).diagonal().tolist()
    aucs, average_precisions = (
        values[:, 0] for values in stats.compute_class_auc_and_ap(np.ones((len(outputs.paths), 1)))
    )
    rows = []
    for label, name in enumerate(classes):
        num_images = int(support[label])
        low, high = wilson_interval(num_correct[label], num_images) if num_images else (None, None)
        metrics = (float(precision[label]), float(recall[label]), float(f1[label]))
        rows.append(
            ClassMetrics(
                name,
                num_images,
                *metrics,
                low,
                high,
                _nan_to_none(aucs, label),
                _nan_to_none(average_precisions, label),
            )
        )
    return tuple(rows)


def _nan_to_none(values: FloatArray, label: int) -> float | None:
    return None if np.isnan(values[label]) else float(values[label])


def _list_examples(classes: tuple[str, ...], outputs: EvalOutputs, correct: bool) -> tuple[EvaluatedImage, ...]:
    """The least confident hits, or the most confident mistakes."""
    confidence, predicted = outputs.logits.double().softmax(1).max(1)
    indices = ((predicted == outputs.labels) == correct).nonzero().flatten().tolist()
    indices.sort(key=lambda i: (float(confidence[i]) if correct else -float(confidence[i]), outputs.paths[i]))
    return tuple(
        EvaluatedImage(outputs.paths[i], classes[outputs.labels[i]], classes[predicted[i]], float(confidence[i]))
        for i in indices[:MAX_LISTED]
    )


def list_confused_pairs(classes: tuple[str, ...], confusion: tuple[tuple[int, ...], ...]) -> tuple[ConfusedPair, ...]:
    """The pairs of classes that are confused, most images first, and of equally many the larger share of the class."""
    pairs = [
        ConfusedPair(classes[label], classes[predicted], count, count / sum(row))
        for label, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and label != predicted
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.images, -pair.share))[:MAX_LISTED])


def _read_run_history(setup: EvalSetup, reporter: Reporter) -> tuple[EpochMetrics, ...]:
    """The epochs of the run that a checkpoint lies in; none where it was taken elsewhere, and none, which the reporter
    is warned of, where they cannot be read: the rest of a report stands without them."""
    run_dir = run_of_checkpoint(setup.checkpoint_path)
    if run_dir is None:
        return ()
    try:
        return read_history(run_dir)
    except CheckpointError as error:
        reporter.warn(f"--report: the curves of the training are left out: {error}")
        return ()


def _build_report_context(eval_run: EvalRun, history: tuple[EpochMetrics, ...]) -> ReportContext:
    checkpoint, recipe = eval_run.checkpoint, eval_run.recipe_file.recipe
    return ReportContext(
        model=recipe.backbone.name,
        weights=str(checkpoint.origin["weights"]),
        stage=checkpoint.stage,
        epoch=checkpoint.epoch,
        source=eval_run.dataset.source,
        root=eval_run.dataset.root,
        split=eval_run.split,
        image_size=checkpoint.preprocessing.image_size,
        device=str(eval_run.classifier.device),
        versions={
            "ftcli": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        recipe=dump_recipe(recipe),
        history=history,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
