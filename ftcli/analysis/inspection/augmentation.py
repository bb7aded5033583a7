"""A picture of what training makes of its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ftcli.analysis.pictures import LINE, MARGIN, Pixels, Sheet, fit_pixels
from ftcli.data.batches import Draw
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import ImageSet, Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.planning import Plan, gather_images, plan_recipe
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Recipe, Stage
from ftcli.results import Reporter

_T = TypeVar("_T")

IMAGES = 8
"""Images that are shown; one of each class where there are more classes."""
CLASSES = 12
"""Classes that are shown at most."""
VIEWS = 5
"""Epochs that are shown at most."""


def draw_augmentation(document: Document, target: Path, reporter: Reporter) -> None:
    """Draw training images as evaluation sees them, and beside each what the first epochs make of it.

    The views are those that `ftcli train` will train on, pixel for pixel: the same transforms with the same seeds,
    from the first stage on. No weights are loaded and nothing is fetched. Raises RecipeError for a recipe that does
    not fit its network, DataError for images that are missing or broken, RunError where nothing can be written.
    """
    plan = plan_recipe(document)
    images = _find_images(document, reporter)
    samples = choose_samples(images.splits["train"])
    rows = _read_views(plan, images, samples, reporter)
    _lay_out(plan, images, rows).publish(target, reporter)


def choose_samples(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Some of the samples, spread evenly over the classes and over the images of each."""
    by_label: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    labels = _spread(sorted(by_label), CLASSES)
    share, more = divmod(max(IMAGES, len(labels)), len(labels))
    return tuple(
        sample
        for number, label in enumerate(labels)
        for sample in _spread(by_label[label], share + (1 if number < more else 0))
    )


def _spread(items: Sequence[_T], count: int) -> Sequence[_T]:
    if len(items) <= count:
        return items
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def list_epochs(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """The first epochs of a training, each as its stage's name and its number in it. A solved stage has none."""
    trained = [stage for stage in recipe.stages if isinstance(stage, Stage)]
    epochs = [(stage.name, epoch) for stage in trained for epoch in range(1, stage.epochs + 1)]
    return tuple(epochs[:VIEWS])


def _find_images(document: Document, reporter: Reporter) -> ImageSet:
    data = document.recipe.data
    missing = [root for root in data.roots if not Path(root).exists()]
    if data.download and missing:
        raise DataError(
            f"{document.locate('data', 'root')}: {missing[0]} does not exist, so there are no images to draw; "
            f"run `ftcli data download {data.download}`"
        )
    return gather_images(document, reporter)


def _read_views(
    plan: Plan, images: ImageSet, samples: Sequence[Sample], reporter: Reporter
) -> dict[Sample, list[Pixels]]:
    """Each sample that can be read with its views, the one of evaluation first."""
    data, preprocessing = plan.recipe.data, plan.preprocessing
    passes: list[tuple[ImageTransform, Draw | None]] = [(build_eval_transform(preprocessing), None)]
    train = build_train_transform(preprocessing, data.augment)
    passes += [(train, (plan.recipe.seed, stage, epoch)) for stage, epoch in list_epochs(plan.recipe)]
    rows: defaultdict[Sample, list[Pixels]] = defaultdict(list)
    broken: list[str] = []
    for transform, draw in passes:
        with Loader(samples, transform, 1, ImageFiles(images.root, data.on_corrupt_image, 0)) as loader:
            for sample, batch in zip(samples, loader.batches(draw=draw), strict=True):
                broken += batch.broken
                if batch.paths:
                    rows[sample].append(fit_pixels(batch.images[0].permute(1, 2, 0).numpy(), 96, 256))
    for sentence in dict.fromkeys(broken):
        reporter.warn(f"left out: {sentence}")
    if not rows:
        raise DataError(f"--plot-augment: not one of {len(samples)} images can be read; the first: {broken[0]}")
    return dict(rows)


def _lay_out(plan: Plan, images: ImageSet, rows: dict[Sample, list[Pixels]]) -> Sheet:
    recipe, side = plan.recipe, next(iter(rows.values()))[0].shape[0]
    columns = ["as in evaluation", *(f"epoch {epoch} of {stage}" for stage, epoch in list_epochs(recipe))]
    step, row_height = max(side, 120) + 8, side + LINE + 14
    width = 2 * MARGIN + len(columns) * step - 8
    head = MARGIN + 2 * LINE + 16
    sheet = Sheet(width, head + len(rows) * row_height + MARGIN)
    augment = recipe.data.augment if isinstance(recipe.data.augment, str) else "its own list"
    title = f"{recipe.name}: training images at {plan.preprocessing.image_size} px, augment: {augment}"
    sheet.write(title, MARGIN, MARGIN, width - 2 * MARGIN, size=14)
    for number, column in enumerate(columns):
        sheet.write(column, MARGIN + number * step, MARGIN + LINE + 8, step - 8, colour="0.35")
    for number, (sample, views) in enumerate(rows.items()):
        top = head + number * row_height
        sheet.write(images.classes[sample.label], MARGIN, top, 2 * step - 16)
        sheet.write(sample.path, MARGIN + 2 * step, top, width - 2 * MARGIN - 2 * step, colour="0.35")
        for place, pixels in enumerate(views):
            sheet.paste(pixels, MARGIN + place * step, top + LINE)
    return sheet
