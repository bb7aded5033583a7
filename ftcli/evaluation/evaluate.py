"""Evaluation of a checkpoint on a split or on other images, and the file of its predictions."""

from __future__ import annotations

import csv
import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from ftcli.errors import CheckpointError
from ftcli.evaluation.bootstrap import compute_metrics_with_intervals
from ftcli.evaluation.calibration import calibrate
from ftcli.evaluation.eval_setup import (
    EvalSetup,
    EvaluateArgs,
    calibrated_path,
    predict_split,
    setup_eval,
    validate_args,
    validate_args_for_checkpoint,
)
from ftcli.evaluation.logits import TTA, EvalOutputs
from ftcli.evaluation.metrics import (
    MetricTerms,
    compute_accuracy,
    compute_calibration_error,
    compute_confusion_matrix,
    compute_loss,
    compute_metric_terms,
    compute_reliability_bins,
    find_thresholds,
)
from ftcli.evaluation.report.page import ReportContext, write_report
from ftcli.files import atomic_open, atomic_open_binary
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
    format_count,
)
from ftcli.runs.history import read_history, run_of_checkpoint
from ftcli.statistics import wilson_interval
from ftcli.version import __version__

logger = logging.getLogger(__name__)

MAX_LISTED = 10
"""The number of listed errors, least confident correct images, and confused pairs of classes."""
_CHUNK_ROWS = 4096


def evaluate(args: EvaluateArgs, reporter: Reporter) -> EvaluateResult:
    """Evaluate a checkpoint and write the requested files; with `calibrate`, evaluate the calibrated checkpoint.

    Thresholds between two classes are chosen on val if another split of the recipe's images is evaluated, otherwise on
    the evaluated images. Raises RecipeError for invalid arguments before any image is read, and what `setup_eval`,
    `predict_split` and `calibrate` raise.
    """
    validate_args(args)
    setup = setup_eval(args, reporter)
    validate_args_for_checkpoint(args, setup.checkpoint_path, len(setup.checkpoint.classes))
    history = _read_run_history(setup) if args.report is not None else ()
    scaling: TemperatureScaling | None = None
    val_outputs: EvalOutputs | None = None
    if args.calibrate:
        setup, scaling, val_outputs = calibrate(setup, args.out or calibrated_path(setup.checkpoint_path), reporter)
    if args.tta is not None or args.data is not None:
        val_outputs = None  # those of calibrate are of other views or images
    if val_outputs is not None and setup.split == "val":
        outputs = val_outputs
    else:
        outputs = predict_split(setup, setup.dataset, setup.split, reporter, args.tta)
    thresholds = _choose_thresholds(setup, outputs, val_outputs, reporter)
    evaluation = replace(_build_result(setup, outputs), thresholds=thresholds, scaling=scaling)
    if args.predictions is not None:
        write_predictions(outputs, setup.classifier.classes, args.predictions)
        evaluation = replace(evaluation, predictions=args.predictions)
    if args.report is not None:
        evaluation = replace(evaluation, report=args.report)
        write_report(evaluation, _build_report_context(setup, history), args.report)
    return evaluation


def _choose_thresholds(
    setup: EvalSetup, outputs: EvalOutputs, val_outputs: EvalOutputs | None, reporter: Reporter
) -> tuple[Threshold, ...]:
    """Choose the thresholds between two classes; computes `val_outputs` if they are needed and None."""
    classes, args = setup.classifier.classes, setup.args
    if len(classes) != 2:
        return ()
    if args.data is not None or setup.split == "val":
        thresholds = find_thresholds(outputs, outputs, classes, args.min_recall, setup.split)
        if args.min_recall is not None and not thresholds:
            logger.warning("--min-recall: has no effect, since all images are of one class; add images of the other")
        return thresholds
    if val_outputs is None:
        num_val = len(setup.dataset.splits["val"])
        logger.info(f"Evaluating the {format_count(num_val, 'image')} of val too, to choose thresholds on them")
        val_outputs = predict_split(setup, setup.dataset, "val", reporter, args.tta)
    return find_thresholds(val_outputs, outputs, classes, args.min_recall, "val")


def _build_result(setup: EvalSetup, outputs: EvalOutputs) -> EvaluateResult:
    classes, tta = setup.classifier.classes, setup.args.tta
    terms, confusion = compute_metric_terms(outputs), compute_confusion_matrix(outputs).numpy()
    return EvaluateResult(
        checkpoint=setup.checkpoint_path,
        split=setup.split,
        images=len(outputs.paths),
        loss=compute_loss(outputs),
        accuracy=compute_accuracy(outputs),
        figures=compute_metrics_with_intervals(outputs, terms),
        per_class=_list_class_metrics(classes, confusion, terms),
        confusion=tuple(map(tuple, confusion.tolist())),
        classes=classes,
        calibration={
            "expected_calibration_error": compute_calibration_error(outputs),
            "mean_confidence": float(outputs.confidence.mean()),
        },
        reliability=compute_reliability_bins(outputs),
        worst=_list_examples(classes, outputs, correct=False),
        unsure=_list_examples(classes, outputs, correct=True),
        confused=list_confused_pairs(classes, confusion.tolist()),
        views=1 if tta is None else len(TTA[tta]),
        skipped=outputs.skipped,
    )


def _list_class_metrics(
    classes: tuple[str, ...], confusion: NDArray[np.int64], terms: MetricTerms
) -> tuple[ClassMetrics, ...]:
    """Return precision, recall, F1, ROC AUC and average precision of each class; 0 for a ratio of 0 / 0."""
    support, predicted, true_positives = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    precision, recall = true_positives / np.maximum(predicted, 1), true_positives / np.maximum(support, 1)
    f1 = 2 * true_positives / np.maximum(support + predicted, 1)
    aucs, average_precisions = terms.compute_class_auc_and_ap(np.ones((int(confusion.sum()), 1)))
    rows = []
    for label, name in enumerate(classes):
        num_images = int(support[label])
        low, high = wilson_interval(int(true_positives[label]), num_images) if num_images else (None, None)
        rows.append(
            ClassMetrics(
                name=name,
                images=num_images,
                precision=float(precision[label]),
                recall=float(recall[label]),
                f1=float(f1[label]),
                recall_low=low,
                recall_high=high,
                roc_auc=_nan_to_none(aucs[label, 0]),
                average_precision=_nan_to_none(average_precisions[label, 0]),
            )
        )
    return tuple(rows)


def _nan_to_none(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _list_examples(classes: tuple[str, ...], outputs: EvalOutputs, correct: bool) -> tuple[EvaluatedImage, ...]:
    """Return the correct images with the lowest confidence, or the errors with the highest."""
    confidence, predicted = outputs.confidence.tolist(), outputs.predicted.tolist()
    indices = (outputs.correct == correct).nonzero().flatten().tolist()
    indices.sort(key=lambda i: (confidence[i] if correct else -confidence[i], outputs.paths[i]))
    return tuple(
        EvaluatedImage(outputs.paths[i], classes[outputs.labels[i]], classes[predicted[i]], confidence[i])
        for i in indices[:MAX_LISTED]
    )


def list_confused_pairs(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> tuple[ConfusedPair, ...]:
    """Return the most frequent pairs of true and predicted class; ties are ordered by their fraction of the class."""
    pairs = [
        ConfusedPair(classes[label], classes[predicted], count, count / sum(row))
        for label, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and label != predicted
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.images, -pair.share))[:MAX_LISTED])


def _read_run_history(setup: EvalSetup) -> tuple[EpochMetrics, ...]:
    """Return the epochs of the checkpoint's run; empty outside a run directory, or if they cannot be read."""
    run_dir = run_of_checkpoint(setup.checkpoint_path)
    if run_dir is None:
        return ()
    try:
        return read_history(run_dir)
    except CheckpointError as error:
        logger.warning(f"--report: omits the training curves: {error}")
        return ()


def _build_report_context(setup: EvalSetup, history: tuple[EpochMetrics, ...]) -> ReportContext:
    checkpoint, recipe = setup.checkpoint, setup.recipe_file.recipe
    return ReportContext(
        model=recipe.backbone.name,
        weights=str(checkpoint.origin["weights"]),
        stage=checkpoint.stage,
        epoch=checkpoint.epoch,
        source=setup.dataset.source,
        root=setup.dataset.root,
        split=setup.split,
        image_size=checkpoint.preprocessing.image_size,
        device=str(setup.classifier.device),
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


def write_predictions(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    """Write the predictions atomically, as Parquet or CSV (UTF-8) by the suffix, in the order of the images.

    Columns are path, label, predicted, probability (of the predicted class), correct (true or false), and p_<class>
    with the probability of each class. Bytes of names that are not UTF-8 are written as backslash escapes. Raises
    RunError if the disk is full or not writable.
    """
    if path.suffix.lower() == ".parquet":
        _write_parquet(outputs, classes, path)
    else:
        _write_csv(outputs, classes, path)


def _write_csv(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    with atomic_open(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_list_column_names(classes))
        for chunk in _chunks(outputs):
            rows = zip(
                outputs.paths[chunk],
                outputs.labels[chunk].tolist(),
                outputs.predicted[chunk].tolist(),
                outputs.confidence[chunk].tolist(),
                outputs.probabilities[chunk].tolist(),
                strict=True,
            )
            for path_text, label, predicted, confidence, probabilities in rows:
                correct = "true" if label == predicted else "false"
                writer.writerow([path_text, classes[label], classes[predicted], confidence, correct, *probabilities])


def _write_parquet(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    column_types = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.bool_())
    column_names = [_escape_surrogates(name) for name in _list_column_names(classes)]
    schema = pyarrow.schema(
        list(zip(column_names, (*column_types, *(pyarrow.float64() for _ in classes)), strict=True))
    )
    class_names = np.array([_escape_surrogates(name) for name in classes], dtype=object)
    with atomic_open_binary(path) as file, ParquetWriter(file, schema) as writer:
        for chunk in _chunks(outputs):
            columns = [
                [_escape_surrogates(path_text) for path_text in outputs.paths[chunk]],
                class_names[outputs.labels[chunk].numpy()],
                class_names[outputs.predicted[chunk].numpy()],
                outputs.confidence[chunk].numpy(),
                outputs.correct[chunk].numpy(),
                *outputs.probabilities[chunk].numpy().T,
            ]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(column) for column in columns], schema=schema))


def _list_column_names(classes: tuple[str, ...]) -> list[str]:
    return ["path", "label", "predicted", "probability", "correct", *(f"p_{name}" for name in classes)]


def _chunks(outputs: EvalOutputs) -> list[slice]:
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, len(outputs.paths), _CHUNK_ROWS)]


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
