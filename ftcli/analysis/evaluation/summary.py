"""How good a checkpoint is on a split, or on another folder of images."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
import torchvision
from sklearn.metrics import precision_recall_fscore_support

from ftcli import __version__
from ftcli.analysis.evaluation.calibration import calibrate
from ftcli.analysis.evaluation.measurement import Case, Measurement, Question, measure_case, open_case, run_split
from ftcli.analysis.evaluation.predictions import write_predictions
from ftcli.analysis.evaluation.wishes import Wish, check_case, check_wish, name_calibrated
from ftcli.analysis.report import Background, write_report
from ftcli.errors import CheckpointError
from ftcli.inference.intervals import Tally, measure_figures, tally
from ftcli.inference.metrics import (
    count_confusion,
    list_reliability,
    measure_accuracy,
    measure_calibration,
    measure_loss,
)
from ftcli.inference.outputs import VIEWS, Outputs
from ftcli.inference.ranking import Floats
from ftcli.inference.thresholds import find_thresholds
from ftcli.recipe.loading import dump_recipe
from ftcli.results import ClassRow, Confusion, EpochRow, Evaluation, Example, Reporter, Scaling, Threshold
from ftcli.runs.records import find_run, read_rows
from ftcli.statistics import wilson

LISTED = 10
"""How many mistakes, doubtful hits and pairs of classes are listed."""


def evaluate(question: Question, wish: Wish, reporter: Reporter) -> Evaluation:
    """Measure a checkpoint, and write what was wished for.

    With `calibrate` it is the new checkpoint that is measured. Thresholds between two classes are chosen on val where
    another split of the recipe's own images is measured, and else on the measured images themselves. Raises RecipeError
    for a wish that cannot be fulfilled, before any image is read, and what `open_case`, `run_split` and `calibrate`
    raise.
    """
    check_wish(wish, question.views)
    case = open_case(question, reporter)
    check_case(wish, case)
    rows = _read_run(case, reporter) if wish.report is not None else ()
    scaling: Scaling | None = None
    val: Outputs | None = None
    if wish.calibrate:
        case, scaling, val = calibrate(case, wish.out or name_calibrated(case.path), reporter)
    known = val if question.views is None and question.data is None else None
    if known is not None and case.split == "val":
        measured = Measurement(**vars(case), outputs=known)
    else:
        measured = measure_case(case, reporter)
    thresholds = _choose_thresholds(measured, wish, known, reporter)
    evaluation = replace(_sum_up(measured), thresholds=thresholds, scaling=scaling)
    if wish.predictions is not None:
        write_predictions(measured.outputs, measured.classifier.classes, wish.predictions)
        evaluation = replace(evaluation, predictions=wish.predictions)
    if wish.report is not None:
        evaluation = replace(evaluation, report=wish.report)
        write_report(evaluation, _describe(measured, rows), wish.report)
    return evaluation


def _choose_thresholds(
    measured: Measurement, wish: Wish, val: Outputs | None, reporter: Reporter
) -> tuple[Threshold, ...]:
    """The thresholds between two classes; `val` are the outputs for val where they are there already."""
    classes = measured.classifier.classes
    if len(classes) != 2:
        return ()
    if measured.question.data is not None or measured.split == "val":
        found = find_thresholds(measured.outputs, measured.outputs, classes, wish.recall, measured.split)
        if wish.recall is not None and not found:
            reporter.warn("--min-recall: all images are of one class, so there is no threshold between two to choose")
        return found
    if val is None:
        count = len(measured.images.splits["val"])
        reporter.say(f"Thresholds are chosen on val, so its {count} images are measured too")
        val = run_split(measured, measured.images, "val", reporter, measured.question.views)
    return find_thresholds(val, measured.outputs, classes, wish.recall, "val")


def _sum_up(measured: Measurement) -> Evaluation:
    classes, outputs = measured.classifier.classes, measured.outputs
    tallied = tally(outputs)
    confusion = tuple(tuple(int(count) for count in row) for row in count_confusion(outputs))
    views = measured.question.views
    sure = outputs.logits.double().softmax(1).max(1)[0]
    return Evaluation(
        checkpoint=measured.path,
        split=measured.split,
        images=len(outputs.paths),
        loss=measure_loss(outputs),
        accuracy=measure_accuracy(outputs),
        figures=measure_figures(outputs, tallied),
        per_class=_list_classes(classes, outputs, tallied),
        confusion=confusion,
        classes=classes,
        calibration={
            "expected_calibration_error": measure_calibration(outputs),
            "mean_confidence": float(sure.mean()),
        },
        reliability=list_reliability(outputs),
        worst=_list_examples(classes, outputs, right=False),
        unsure=_list_examples(classes, outputs, right=True),
        confused=find_confused(classes, confusion),
        views=1 if views is None else len(VIEWS[views]),
        skipped=outputs.skipped,
    )


def _list_classes(classes: tuple[str, ...], outputs: Outputs, tallied: Tally) -> tuple[ClassRow, ...]:
    given = outputs.logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        outputs.labels.numpy(), given.numpy(), labels=range(len(classes)), zero_division=0.0
    )
    hits = count_confusion(outputs).diagonal().tolist()
    areas, averages = (values[:, 0] for values in tallied.rank_classes(np.ones((len(outputs.paths), 1))))
    rows = []
    for label, name in enumerate(classes):
        images = int(support[label])
        low, high = wilson(hits[label], images) if images else (None, None)
        figures = (float(precision[label]), float(recall[label]), float(f1[label]))
        rows.append(ClassRow(name, images, *figures, low, high, _tell(areas, label), _tell(averages, label)))
    return tuple(rows)


def _tell(values: Floats, label: int) -> float | None:
    return None if np.isnan(values[label]) else float(values[label])


def _list_examples(classes: tuple[str, ...], outputs: Outputs, right: bool) -> tuple[Example, ...]:
    """The least confident hits, or the most confident mistakes."""
    sure, given = outputs.logits.double().softmax(1).max(1)
    places = ((given == outputs.labels) == right).nonzero().flatten().tolist()
    places.sort(key=lambda i: (float(sure[i]) if right else -float(sure[i]), outputs.paths[i]))
    return tuple(
        Example(outputs.paths[i], classes[outputs.labels[i]], classes[given[i]], float(sure[i]))
        for i in places[:LISTED]
    )


def find_confused(classes: tuple[str, ...], confusion: tuple[tuple[int, ...], ...]) -> tuple[Confusion, ...]:
    """The pairs of classes that are confused, most images first, and of equally many the larger share of the class."""
    pairs = [
        Confusion(classes[label], classes[given], count, count / sum(row))
        for label, row in enumerate(confusion)
        for given, count in enumerate(row)
        if count and label != given
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.images, -pair.share))[:LISTED])


def _read_run(case: Case, reporter: Reporter) -> tuple[EpochRow, ...]:
    """The epochs of the run that a checkpoint lies in; none where it was taken elsewhere, and none, which the reporter
    is warned of, where they cannot be read: the rest of a report stands without them."""
    run = find_run(case.path)
    if run is None:
        return ()
    try:
        return read_rows(run)
    except CheckpointError as error:
        reporter.warn(f"--report: the curves of the training are left out: {error}")
        return ()


def _describe(measured: Measurement, rows: tuple[EpochRow, ...]) -> Background:
    checkpoint, recipe = measured.checkpoint, measured.document.recipe
    return Background(
        model=recipe.backbone.name,
        weights=str(checkpoint.origin["weights"]),
        stage=checkpoint.stage,
        epoch=checkpoint.epoch,
        source=measured.images.source,
        root=measured.images.root,
        split=measured.split,
        image_size=checkpoint.preprocessing.image_size,
        device=str(measured.classifier.device),
        versions={
            "ftcli": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        recipe=dump_recipe(recipe),
        rows=rows,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
