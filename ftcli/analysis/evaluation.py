"""How good a checkpoint is on a split, or on another folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sklearn.metrics import precision_recall_fscore_support

from ftcli.data.loading import Loader, choose_workers
from ftcli.data.sources import Sample, list_split
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError, suggest
from ftcli.inference.classifier import Classifier, load_classifier
from ftcli.inference.metrics import count_confusion, measure_accuracy, measure_calibration, measure_loss
from ftcli.inference.outputs import Outputs, compute_outputs
from ftcli.planning import align_classes, gather_images
from ftcli.recipe.loading import Document
from ftcli.results import ClassRow, Evaluation, Mistake, Reporter
from ftcli.runs.checkpoint import Checkpoint
from ftcli.runs.folder import find_checkpoint
from ftcli.runtime import choose_device

WORST = 10


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the user asked of `ftcli evaluate`: without `data` the images of the checkpoint's own recipe, without
    `split` the test split where there is one."""

    checkpoint: Path
    data: Path | None = None
    split: str | None = None
    device: str


def evaluate(question: Question, reporter: Reporter) -> Evaluation:
    """Measure a checkpoint. Classes are matched by name, and the images of a split are those it had in training.

    Raises CheckpointError for a checkpoint that cannot be used or that has other classes, DataError for images that
    are not there.
    """
    path, note = find_checkpoint(question.checkpoint)
    if note:
        reporter.say(note)
    classifier, checkpoint, document = load_classifier(path, choose_device(question.device))
    split, root, samples = _choose_images(question, path, checkpoint, document, reporter)
    data = document.recipe.data
    transform = build_eval_transform(checkpoint.preprocessing)
    with Loader(samples, root, transform, data.batch_size, choose_workers(data.workers), data.on_bad_image) as loader:
        outputs = compute_outputs(classifier, loader, reporter, f"evaluating {split}")
    assert outputs is not None  # nothing stops it
    return _sum_up(path, split, classifier, outputs)


def _choose_images(
    question: Question, path: Path, checkpoint: Checkpoint, document: Document, reporter: Reporter
) -> tuple[str, Path, tuple[Sample, ...]]:
    if question.data is not None:
        images = list_split(question.data, question.split, checkpoint.classes, "--data")
        ((split, samples),) = images.splits.items()
        return split, images.root, samples
    images = gather_images(document, reporter, checkpoint.splits_by_path())
    images = align_classes(images, checkpoint.classes, str(path))
    split = question.split or ("test" if "test" in images.splits else "val")
    if split not in images.splits:
        raise DataError(f"--split {split}: {images.source} has no such split; {suggest(split, images.splits)}")
    return split, images.root, images.splits[split]


def _sum_up(path: Path, split: str, classifier: Classifier, outputs: Outputs) -> Evaluation:
    classes = classifier.classes
    confusion = count_confusion(outputs)
    given = outputs.logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        outputs.labels.numpy(), given.numpy(), labels=range(len(classes)), zero_division=0.0
    )
    rows = zip(classes, support, precision, recall, f1, strict=True)
    return Evaluation(
        checkpoint=path,
        split=split,
        images=len(outputs.paths),
        loss=measure_loss(outputs),
        accuracy=measure_accuracy(outputs),
        per_class=tuple(ClassRow(name, int(n), float(p), float(r), float(f)) for name, n, p, r, f in rows),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        classes=classes,
        calibration={"expected_calibration_error": measure_calibration(outputs)},
        worst=_find_worst(classes, outputs),
        skipped=outputs.skipped,
    )


def _find_worst(classes: tuple[str, ...], outputs: Outputs) -> tuple[Mistake, ...]:
    sure, given = outputs.logits.double().softmax(1).max(1)
    wrong = (given != outputs.labels).nonzero().flatten().tolist()
    wrong.sort(key=lambda i: (-float(sure[i]), outputs.paths[i]))
    return tuple(
        Mistake(outputs.paths[i], classes[outputs.labels[i]], classes[given[i]], float(sure[i])) for i in wrong[:WORST]
    )
