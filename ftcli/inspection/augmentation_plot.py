"""A picture of what training makes of its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ftcli.data.batches import RngKey
from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Canvas, Pixels, resize_to_fit
from ftcli.planning import Plan, load_dataset, plan_recipe
from ftcli.recipe.loading import RecipeFile
from ftcli.recipe.schema import Recipe, Stage
from ftcli.results import Reporter

_T = TypeVar("_T")

NUM_IMAGES = 8
"""Images that are shown; one of each class where there are more classes."""
MAX_CLASSES = 12
"""Classes that are shown at most."""
MAX_EPOCHS = 5
"""Epochs that are shown at most."""


def plot_augmentation(recipe_file: RecipeFile, path: Path, reporter: Reporter) -> None:
    """Draw training images as evaluation sees them, and beside each what the first epochs make of it.

    The views are those that `ftcli train` will train on, pixel for pixel: the same transforms with the same seeds,
    from the first stage on. No weights are loaded and nothing is fetched. Raises RecipeError for a recipe that does
    not fit its network, DataError for images that are missing or broken, RunError where nothing can be written.
    """
    plan = plan_recipe(recipe_file)
    dataset = _load_dataset(recipe_file, reporter)
    samples = choose_samples(dataset.splits["train"])
    views_by_sample = _read_views(plan, dataset, samples, reporter)
    _build_sheet(plan, dataset, views_by_sample).save(path, reporter)


def choose_samples(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Some of the samples, spread evenly over the classes and over the images of each."""
    by_label: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    labels = _spread_evenly(sorted(by_label), MAX_CLASSES)
    images_per_class, remainder = divmod(max(NUM_IMAGES, len(labels)), len(labels))
    return tuple(
        sample
        for class_index, label in enumerate(labels)
        for sample in _spread_evenly(by_label[label], images_per_class + (1 if class_index < remainder else 0))
    )


def _spread_evenly(items: Sequence[_T], count: int) -> Sequence[_T]:
    if len(items) <= count:
        return items
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def list_epochs(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """The first epochs of a training, each as its stage's name and its number in it. A solved stage has none."""
    train_stages = [stage for stage in recipe.stages if isinstance(stage, Stage)]
    epochs = [(stage.name, epoch) for stage in train_stages for epoch in range(1, stage.epochs + 1)]
    return tuple(epochs[:MAX_EPOCHS])


def _load_dataset(recipe_file: RecipeFile, reporter: Reporter) -> ImageDataset:
    data = recipe_file.recipe.data
    missing_roots = [root for root in data.roots if not Path(root).exists()]
    if data.download and missing_roots:
        raise DataError(
            f"{recipe_file.locate('data', 'root')}: {missing_roots[0]} does not exist, so there are no images to draw; "
            f"run `ftcli data download {data.download}`"
        )
    return load_dataset(recipe_file, reporter)


def _read_views(
    plan: Plan, dataset: ImageDataset, samples: Sequence[Sample], reporter: Reporter
) -> dict[Sample, list[Pixels]]:
    """Each sample that can be read with its views, the one of evaluation first."""
    data, preprocessing = plan.recipe.data, plan.preprocessing
    view_specs: list[tuple[ImageTransform, RngKey | None]] = [(build_eval_transform(preprocessing), None)]
    train_transform = build_train_transform(preprocessing, data.augment)
    view_specs += [(train_transform, (plan.recipe.seed, stage, epoch)) for stage, epoch in list_epochs(plan.recipe)]
    views_by_sample: defaultdict[Sample, list[Pixels]] = defaultdict(list)
    corrupt_messages: list[str] = []
    for transform, rng_key in view_specs:
        with ImageLoader(samples, transform, 1, LoaderConfig(dataset.root, data.on_corrupt_image, 0)) as loader:
            for sample, batch in zip(samples, loader.batches(rng_key=rng_key), strict=True):
                corrupt_messages += batch.skip_messages
                if batch.paths:
                    views_by_sample[sample].append(resize_to_fit(batch.images[0].permute(1, 2, 0).numpy(), 96, 256))
    for message in dict.fromkeys(corrupt_messages):
        reporter.warn(f"left out: {message}")
    if not views_by_sample:
        raise DataError(
            f"--plot-augment: not one of {len(samples)} images can be read; the first: {corrupt_messages[0]}"
        )
    return dict(views_by_sample)


def _build_sheet(plan: Plan, dataset: ImageDataset, views_by_sample: dict[Sample, list[Pixels]]) -> Canvas:
    recipe, side = plan.recipe, next(iter(views_by_sample.values()))[0].shape[0]
    columns = ["as in evaluation", *(f"epoch {epoch} of {stage}" for stage, epoch in list_epochs(recipe))]
    column_width, row_height = max(side, 120) + 8, side + LINE_HEIGHT + 14
    width = 2 * MARGIN + len(columns) * column_width - 8
    header_height = MARGIN + 2 * LINE_HEIGHT + 16
    sheet = Canvas(width, header_height + len(views_by_sample) * row_height + MARGIN)
    augment = recipe.data.augment if isinstance(recipe.data.augment, str) else "its own list"
    title = f"{recipe.name}: training images at {plan.preprocessing.image_size} px, augment: {augment}"
    sheet.write(title, MARGIN, MARGIN, width - 2 * MARGIN, size=14)
    for index, column in enumerate(columns):
        sheet.write(column, MARGIN + index * column_width, MARGIN + LINE_HEIGHT + 8, column_width - 8, colour="0.35")
    for index, (sample, views) in enumerate(views_by_sample.items()):
        top = header_height + index * row_height
        sheet.write(dataset.classes[sample.label], MARGIN, top, 2 * column_width - 16)
        sheet.write(sample.path, MARGIN + 2 * column_width, top, width - 2 * MARGIN - 2 * column_width, colour="0.35")
        for view_index, pixels in enumerate(views):
            sheet.paste(pixels, MARGIN + view_index * column_width, top + LINE_HEIGHT)
    return sheet
