"""What a checkpoint gives for the images of a question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.data.loading import Loader, choose_workers
from ftcli.data.sources import ImageSet, list_split
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError, suggest
from ftcli.inference.classifier import Classifier, load_classifier
from ftcli.inference.outputs import Outputs, compute_outputs
from ftcli.planning import align_classes, gather_images
from ftcli.recipe.loading import Document
from ftcli.results import Reporter
from ftcli.runs.checkpoint import Checkpoint
from ftcli.runs.folder import find_checkpoint
from ftcli.runtime import choose_device


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the user asked: without `data` the images of the checkpoint's own recipe, without `split` the test split
    where there is one, else val; all of `data` where that has no splits."""

    checkpoint: Path
    data: Path | None = None
    split: str | None = None
    device: str


@dataclass(frozen=True)
class Measurement:
    """A classifier and its outputs for one split. `images` has at least that split; those of the checkpoint's own
    recipe have all. `document` is the recipe in the checkpoint, which was read from `path`."""

    path: Path
    checkpoint: Checkpoint
    document: Document
    classifier: Classifier
    images: ImageSet
    split: str
    outputs: Outputs


def measure(question: Question, reporter: Reporter) -> Measurement:
    """Compute what a checkpoint gives for the images of a question.

    Classes are matched by name, and the images of a split are those it had in training. Raises CheckpointError for a
    checkpoint that cannot be used or that has other classes, DataError for images that are not there.
    """
    path, note = find_checkpoint(question.checkpoint)
    if note:
        reporter.say(note)
    classifier, checkpoint, document = load_classifier(path, choose_device(question.device))
    images, split = _choose_images(question, path, checkpoint, document, reporter)
    outputs = run_split(classifier, document, images, split, reporter)
    return Measurement(path, checkpoint, document, classifier, images, split, outputs)


def run_split(classifier: Classifier, document: Document, images: ImageSet, split: str, reporter: Reporter) -> Outputs:
    """The outputs for every image of a split, in batches of the recipe's size."""
    data, transform = document.recipe.data, build_eval_transform(classifier.preprocessing)
    workers = choose_workers(data.workers)
    with Loader(images.splits[split], images.root, transform, data.batch_size, workers, data.on_bad_image) as loader:
        outputs = compute_outputs(classifier, loader, reporter, f"evaluating {split}")
    assert outputs is not None  # nothing stops it
    return outputs


def _choose_images(
    question: Question, path: Path, checkpoint: Checkpoint, document: Document, reporter: Reporter
) -> tuple[ImageSet, str]:
    if question.data is not None:
        images = list_split(question.data, question.split, checkpoint.classes, "--data")
        (split,) = images.splits
        return images, split
    images = gather_images(document, reporter, checkpoint.splits_by_path())
    images = align_classes(images, checkpoint.classes, str(path))
    split = question.split or ("test" if "test" in images.splits else "val")
    if split not in images.splits:
        raise DataError(f"--split {split}: {images.source} has no such split; {suggest(split, images.splits)}")
    return images, split
