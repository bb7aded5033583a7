"""The plot of `ftcli inspect --plot-augment`: the augmented views that training uses."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import nn

from ftcli.data.dataset import ImageDataset
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Canvas, Pixels, resize_to_fit
from ftcli.models.cut import cut_model
from ftcli.models.factory import create_model
from ftcli.models.heads import reset_classifier
from ftcli.planning import Plan, StagePlan, list_augmentation_keys, load_dataset, plan_recipe
from ftcli.recipe.loading import RecipeFile
from ftcli.results import Reporter, format_count
from ftcli.runtime import RngKey

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

NUM_IMAGES = 8
"""The number of images shown; one per class if there are more classes."""
MAX_CLASSES = 12
"""The number of classes shown at most."""
MAX_EPOCHS = 5
"""The number of epochs shown at most."""


@dataclass(frozen=True)
class EpochView:
    """An epoch, counted from 1, of a stage, and the random key of the view that it trains on."""

    stage: str
    epoch: int
    rng_key: RngKey


def plot_augmentation(recipe_file: RecipeFile, path: Path, reporter: Reporter) -> None:
    """Draw training images as in evaluation, and next to each the views that the first epochs train on.

    The views are those of `ftcli train`, pixel for pixel: a stage with a frozen backbone repeats its views, any other
    stage has a view for each epoch. Downloads nothing. Raises RecipeError for a recipe that does not fit its network,
    DataError for missing or corrupt images, RunError if the plot cannot be written.
    """
    plan = plan_recipe(recipe_file)
    dataset = _load_dataset(recipe_file, reporter)
    epoch_views = list_epoch_views(plan, len(dataset.classes))
    samples = choose_samples(dataset.splits["train"])
    views_by_sample = _read_views(plan, dataset, samples, epoch_views)
    _build_canvas(plan, dataset, epoch_views, views_by_sample).save(path)


def choose_samples(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Choose samples evenly over the classes and over the images of each class."""
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


def list_epoch_views(plan: Plan, num_classes: int) -> tuple[EpochView, ...]:
    """Return the first epochs of a training run with the views that they train on. A head fit has no epochs."""
    model = create_model(plan.recipe.backbone.name, meta=True, image_size=plan.preprocessing.image_size)
    reset_classifier(model, plan.recipe, plan.head.path, num_classes)
    epoch_views = (
        EpochView(stage_plan.stage.name, epoch + 1, rng_keys[epoch % len(rng_keys)])
        for stage_plan in plan.stages
        if isinstance(stage_plan, StagePlan)
        for rng_keys in [
            list_augmentation_keys(plan.recipe.seed, stage_plan.stage, _has_frozen_backbone(plan, stage_plan, model))
        ]
        for epoch in range(stage_plan.stage.epochs)
    )
    return tuple(islice(epoch_views, MAX_EPOCHS))


def _has_frozen_backbone(plan: Plan, stage_plan: StagePlan, model: nn.Module) -> bool:
    """Return whether training would cut the network for a stage."""
    if not stage_plan.separates_backbone:
        return False
    frozen = stage_plan.frozen_names
    cut = cut_model(model, frozen.parameters, frozen.modules, plan.preprocessing.image_size)
    return cut is not None and not cut.is_uncut


def _load_dataset(recipe_file: RecipeFile, reporter: Reporter) -> ImageDataset:
    data = recipe_file.recipe.data
    missing_roots = [root for root in data.roots if not Path(root).exists()]
    if data.download and missing_roots:
        raise DataError(
            f"{recipe_file.locate('data', 'root')}: {missing_roots[0]} does not exist; run "
            f"`ftcli data download {data.download}`"
        )
    return load_dataset(recipe_file, reporter)


def _read_views(
    plan: Plan, dataset: ImageDataset, samples: Sequence[Sample], epoch_views: Sequence[EpochView]
) -> dict[Sample, list[Pixels]]:
    """Return the views of each sample that can be read, that of evaluation first."""
    data, preprocessing = plan.recipe.data, plan.preprocessing
    train_transform = build_train_transform(preprocessing, data.augment)
    view_specs: list[tuple[ImageTransform, RngKey | None]] = [
        (build_eval_transform(preprocessing), None),
        *((train_transform, epoch_view.rng_key) for epoch_view in epoch_views),
    ]
    views_by_sample: defaultdict[Sample, list[Pixels]] = defaultdict(list)
    skip_messages: list[str] = []
    for transform, rng_key in view_specs:
        with ImageLoader(samples, transform, 1, LoaderConfig(dataset.root, data.on_corrupt_image, 0)) as loader:
            for sample, batch in zip(samples, loader.batches(rng_key=rng_key), strict=True):
                skip_messages += batch.skip_messages
                if batch.paths:
                    views_by_sample[sample].append(resize_to_fit(batch.images[0].permute(1, 2, 0).numpy(), 96, 256))
    for message in dict.fromkeys(skip_messages):
        logger.warning(f"skipped: {message}")
    if not views_by_sample:
        raise DataError(
            f"--plot-augment: none of {format_count(len(samples), 'image')} can be read; the first: {skip_messages[0]}"
        )
    return dict(views_by_sample)


def _build_canvas(
    plan: Plan,
    dataset: ImageDataset,
    epoch_views: Sequence[EpochView],
    views_by_sample: dict[Sample, list[Pixels]],
) -> Canvas:
    recipe, side = plan.recipe, next(iter(views_by_sample.values()))[0].shape[0]
    columns = ["evaluation", *(f"epoch {view.epoch} of {view.stage}" for view in epoch_views)]
    column_width, row_height = max(side, 120) + 8, side + LINE_HEIGHT + 14
    width = 2 * MARGIN + len(columns) * column_width - 8
    header_height = MARGIN + 2 * LINE_HEIGHT + 16
    canvas = Canvas(width, header_height + len(views_by_sample) * row_height + MARGIN)
    augment = recipe.data.augment if isinstance(recipe.data.augment, str) else "a list"
    title = f"{recipe.name}: training images at {plan.preprocessing.image_size} px, augment: {augment}"
    canvas.write(title, MARGIN, MARGIN, width - 2 * MARGIN, size=14)
    for index, column in enumerate(columns):
        canvas.write(column, MARGIN + index * column_width, MARGIN + LINE_HEIGHT + 8, column_width - 8, colour="0.35")
    for index, (sample, views) in enumerate(views_by_sample.items()):
        top = header_height + index * row_height
        canvas.write(dataset.classes[sample.label], MARGIN, top, 2 * column_width - 16)
        canvas.write(sample.path, MARGIN + 2 * column_width, top, width - 2 * MARGIN - 2 * column_width, colour="0.35")
        for view_index, pixels in enumerate(views):
            canvas.paste(pixels, MARGIN + view_index * column_width, top + LINE_HEIGHT)
    return canvas
