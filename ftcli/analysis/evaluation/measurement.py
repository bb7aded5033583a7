"""What a checkpoint gives for the images of a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ftcli.data.loading import share_cores
from ftcli.data.sources import ImageSet, list_split
from ftcli.errors import DataError, RecipeError, RunError, suggest
from ftcli.features.cache import Source
from ftcli.inference.classifier import Classifier, load_classifier
from ftcli.inference.inputs import HeadInputs, Reading, open_feed, open_inputs
from ftcli.inference.outputs import AS_THEY_ARE, VIEWS, Outputs, compute_outputs
from ftcli.planning import align_classes, gather_images
from ftcli.recipe.loading import Document
from ftcli.results import Reporter, tell_count
from ftcli.runs.checkpoint import Checkpoint
from ftcli.runs.folder import find_checkpoint
from ftcli.runtime import choose_device, explain_memory


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the user asked: without `data` the images of the checkpoint's own recipe, without `split` the test split
    where there is one, else val; all of `data` where that has no splits. Where `batch_size` or `workers` is None, the
    recipe tells. `views` names what each image is averaged over, None for the image alone. With `cache` what the head
    is given for an image alone is kept and found again; `verify` digests every image anew for that."""

    checkpoint: Path
    data: Path | None = None
    split: str | None = None
    device: str
    batch_size: int | None = None
    num_workers: int | None = None
    views: str | None = None
    cache: bool = True
    verify: bool = False


@dataclass(frozen=True)
class Case:
    """A classifier and the images that a question is about. `images` has at least the split; those of the checkpoint's
    own recipe have all. `document` is the recipe in the checkpoint, which was read from `path`. `open_inputs` gives
    what finds the inputs of the head in the cache, None where there is none or it is not wanted."""

    path: Path
    checkpoint: Checkpoint
    document: Document
    classifier: Classifier
    images: ImageSet
    split: str
    question: Question
    open_inputs: Callable[[], HeadInputs | None]


@dataclass(frozen=True)
class Measurement(Case):
    """The same with the outputs for the split."""

    outputs: Outputs


def measure(question: Question, reporter: Reporter) -> Measurement:
    """Compute what a checkpoint gives for the images of a question. Raises as `open_case` and `run_split` do."""
    return measure_case(open_case(question, reporter), reporter)


def measure_case(case: Case, reporter: Reporter) -> Measurement:
    """Compute the outputs for the split of a case. Raises as `run_split` does."""
    outputs = run_split(case, case.images, case.split, reporter, case.question.views)
    return Measurement(**vars(case), outputs=outputs)


def open_case(question: Question, reporter: Reporter) -> Case:
    """Load the checkpoint of a question and list its images; none is read yet.

    Classes are matched by name, and the images of a split are those it had in training. Raises CheckpointError for a
    checkpoint that cannot be used or that has other classes, DataError for images that are not there, RecipeError for
    options that do not go together. The reporter is warned where a split of the checkpoint's own recipe has lost or
    gained images since training.
    """
    if question.verify and not question.cache:
        raise RecipeError("--rehash: does nothing with --no-cache; leave one out")
    if question.verify and question.views is not None:
        raise RecipeError(f"--rehash: does nothing with --tta {question.views}, which uses no cache; leave one out")
    path, note = find_checkpoint(question.checkpoint)
    if note:
        reporter.say(note)
    classifier, checkpoint, document, plan = load_classifier(path, choose_device(question.device))

    @cache
    def open_head() -> HeadInputs | None:
        if not question.cache:
            return None
        model, expected = classifier.model, checkpoint.preprocessing
        return open_inputs(model, plan.head.path, expected, classifier.device, classifier.precision)

    if question.data is not None:
        images = list_split(question.data, question.split, checkpoint.classes, "--data")
        (split,) = images.splits
        return Case(path, checkpoint, document, classifier, images, split, question, open_head)
    images = gather_own(document, checkpoint, path, reporter)
    known = {*images.splits, *checkpoint.held}
    split = ("test" if "test" in known else "val") if question.split is None else question.split
    if split not in images.splits:
        if held := checkpoint.held.get(split):
            raise DataError(
                f"{path}: {images.source} has no {split} any more, of which training knew "
                f"{tell_count(len(held), 'image')}; put them back, or give --split {' or '.join(images.splits)}"
            )
        named = split or repr(split)
        raise DataError(f"--split {named}: {images.source} has no such split; {suggest(split, images.splits)}")
    _tell_changes(checkpoint, images, split, path, reporter)
    return Case(path, checkpoint, document, classifier, images, split, question, open_head)


def _tell_changes(checkpoint: Checkpoint, images: ImageSet, split: str, path: Path, reporter: Reporter) -> None:
    """Warn where a split is not, image by image, what training knew."""
    held, found = set(checkpoint.held.get(split, ())), {sample.path for sample in images.splits[split]}
    changes = [
        f"{tell_count(len(paths), 'image')} {what}, such as {min(paths)}"
        for paths, what in ((held - found, "missing"), (found - held, "added"))
        if paths
    ]
    if held and changes:
        reporter.warn(f"{path}: {split} is not as it was in training: {'; '.join(changes)}")


def gather_own(document: Document, checkpoint: Checkpoint, path: Path, reporter: Reporter) -> ImageSet:
    """The images of a checkpoint's own recipe, each in the split that it was in. Raises as `open_case` does."""
    images = gather_images(document, reporter, checkpoint.splits_by_path())
    return align_classes(images, checkpoint.classes, str(path))


def run_split(case: Case, images: ImageSet, split: str, reporter: Reporter, views: str | None = None) -> Outputs:
    """The outputs for every image of a split, averaged over the `views` of that name. What the cache has of an image
    alone is taken from there; else images come in batches of the size that the question or the recipe tells.

    Raises RunError for outputs that are not finite, or where memory runs out.
    """
    data, question, task = case.document.recipe.data, case.question, f"evaluating {split}"
    wanted = data.num_workers if question.num_workers is None else question.num_workers
    num_workers = share_cores(wanted, case.classifier.device, images)
    source = Source(images.root, data.on_corrupt_image, num_workers, question.verify)
    reading = Reading(source, question.batch_size or data.batch_size)
    inputs = case.open_inputs() if views is None else None
    seen = AS_THEY_ARE if views is None else VIEWS[views]
    samples, classifier = images.splits[split], case.classifier
    with explain_memory(), open_feed(classifier, inputs, samples, reading, reporter, task, seen) as opened:
        assert opened is not None  # nothing stops it
        feed, look = opened
        outputs = compute_outputs(classifier.model, look, feed, reporter, task)
    assert outputs is not None
    finite = outputs.logits.isfinite().all(1)
    if not finite.all():
        path = outputs.paths[int(finite.int().argmin())]
        raise RunError(
            f"evaluating {split}: the network gives numbers that are not finite for {int((~finite).sum())} of "
            f"{len(finite)} images, first {path}; take another checkpoint, or train anew with a lower learning rate"
        )
    return outputs
