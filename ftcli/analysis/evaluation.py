"""How good a checkpoint is on a split, or on another folder of images."""

from __future__ import annotations

from sklearn.metrics import precision_recall_fscore_support

from ftcli.analysis.measurement import Measurement, Question, measure
from ftcli.inference.metrics import count_confusion, measure_accuracy, measure_calibration, measure_loss
from ftcli.inference.outputs import Outputs
from ftcli.results import ClassRow, Evaluation, Example, Reporter

WORST = 10


def evaluate(question: Question, reporter: Reporter) -> Evaluation:
    """Measure a checkpoint. Raises as `measure` does."""
    return _sum_up(measure(question, reporter))


def _sum_up(measured: Measurement) -> Evaluation:
    classes, outputs = measured.classifier.classes, measured.outputs
    confusion = count_confusion(outputs)
    given = outputs.logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        outputs.labels.numpy(), given.numpy(), labels=range(len(classes)), zero_division=0.0
    )
    rows = zip(classes, support, precision, recall, f1, strict=True)
    return Evaluation(
        checkpoint=measured.path,
        split=measured.split,
        images=len(outputs.paths),
        loss=measure_loss(outputs),
        accuracy=measure_accuracy(outputs),
        figures=(),
        per_class=tuple(
            ClassRow(name, int(n), float(p), float(r), float(f), None, None, None, None) for name, n, p, r, f in rows
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        classes=classes,
        calibration={"expected_calibration_error": measure_calibration(outputs)},
        reliability=(),
        worst=_find_worst(classes, outputs),
        unsure=(),
        confused=(),
        skipped=outputs.skipped,
    )


def _find_worst(classes: tuple[str, ...], outputs: Outputs) -> tuple[Example, ...]:
    sure, given = outputs.logits.double().softmax(1).max(1)
    wrong = (given != outputs.labels).nonzero().flatten().tolist()
    wrong.sort(key=lambda i: (-float(sure[i]), outputs.paths[i]))
    return tuple(
        Example(outputs.paths[i], classes[outputs.labels[i]], classes[given[i]], float(sure[i])) for i in wrong[:WORST]
    )
