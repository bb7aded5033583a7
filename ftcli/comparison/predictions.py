"""What runs answer to the same images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ftcli.comparison.loaded_run import LoadedRun
from ftcli.comparison.significance import RunPredictions
from ftcli.data.dataset import ImageDataset
from ftcli.errors import CheckpointError, DataError, format_list
from ftcli.evaluation.eval_setup import EvalSetup, evaluate_checkpoint, load_checkpoint_dataset
from ftcli.evaluation.evaluate_args import EvaluateArgs
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import compute_loss
from ftcli.recipe.loading import recipe_from_dict
from ftcli.results import Reporter, format_count

_MAX_NAMED_CLASSES = 5
"""How many classes are named."""

ImageKey = tuple[str, str]
"""The real, absolute path of an image, and the name of its class."""


@dataclass(frozen=True)
class RunEvaluation:
    """The answers of a run to the images of a split, in the order of `keys`, and their mean cross-entropy."""

    predictions: RunPredictions
    keys: tuple[ImageKey, ...]
    split: str
    loss: float


def evaluate_all(
    runs: Sequence[LoadedRun], data: Path | None, split: str | None, device: str, reporter: Reporter
) -> tuple[tuple[RunEvaluation, ...], str | None]:
    """What the runs answer to the same images, those of `data` or of their own recipes; or nothing, and why.

    Raises what `measure` raises where a `data` or `split` was asked for.
    """
    first = runs[0]
    for other in runs[1:]:
        if set(other.checkpoint.classes) != set(first.checkpoint.classes):
            return (), _describe_class_mismatch(first, other)
    try:
        # Before any image is read.
        if data is None and (
            reason := _describe_image_mismatch([_list_split_images(run, split, reporter) for run in runs])
        ):
            return (), reason
        eval_args = [
            EvaluateArgs(checkpoint=run.checkpoint_path, data=data, split=split, device=device) for run in runs
        ]
        evaluations = [
            _to_common_order(run, *evaluate_checkpoint(args, reporter))
            for run, args in zip(runs, eval_args, strict=True)
        ]
    except (CheckpointError, DataError) as error:
        if data is not None or split is not None:
            raise
        return (), f"not all can be measured: {error.messages[0]}; or give images for all with --data"
    # A recipe may leave out broken images.
    reason = _describe_image_mismatch(
        [_SplitImages(evaluation.predictions.name, evaluation.split, evaluation.keys) for evaluation in evaluations]
    )
    return ((), reason) if reason else (tuple(evaluations), None)


@dataclass(frozen=True)
class _SplitImages:
    """The images of a split, sorted."""

    run_name: str
    split: str
    keys: tuple[ImageKey, ...]


def _list_split_images(run: LoadedRun, split: str | None, reporter: Reporter) -> _SplitImages:
    """The images that a run would be measured on; none where its recipe has no such split, which `measure` tells."""
    recipe_file = recipe_from_dict(run.checkpoint.recipe, str(run.checkpoint_path))
    dataset = load_checkpoint_dataset(recipe_file, run.checkpoint, run.checkpoint_path, reporter)
    chosen_split = split or ("test" if "test" in dataset.splits else "val")
    samples = dataset.splits.get(chosen_split, ())
    keys = _make_image_keys(dataset, (sample.path for sample in samples), (sample.label for sample in samples))
    return _SplitImages(run.name, chosen_split, tuple(sorted(keys)))


def _make_image_keys(dataset: ImageDataset, paths: Iterable[str], labels: Iterable[int]) -> list[ImageKey]:
    return [
        (os.path.realpath(dataset.root / path), dataset.classes[label])
        for path, label in zip(paths, labels, strict=True)
    ]


def _to_common_order(run: LoadedRun, setup: EvalSetup, outputs: EvalOutputs) -> RunEvaluation:
    """The answers in an order of images and classes that does not depend on the run."""
    classes = setup.classifier.classes
    keys = _make_image_keys(setup.dataset, outputs.paths, outputs.labels.tolist())
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    sorted_indices = {name: index for index, name in enumerate(sorted(classes))}
    to_sorted_index = np.array([sorted_indices[name] for name in classes], dtype=np.int64)
    predicted, labels = outputs.predicted.numpy(), outputs.labels.numpy()
    predictions = RunPredictions(run.name, to_sorted_index[predicted[order]], to_sorted_index[labels[order]])
    return RunEvaluation(predictions, tuple(keys[index] for index in order), setup.split, compute_loss(outputs))


def _describe_class_mismatch(first: LoadedRun, other: LoadedRun) -> str:
    """Which classes one of two runs knows and the other does not, the first few of each."""
    first_classes, other_classes = (set(run.checkpoint.classes) for run in (first, other))
    parts = []
    for classes, ordinal in (
        (sorted(first_classes - other_classes), "first"),
        (sorted(other_classes - first_classes), "second"),
    ):
        if classes:
            parts.append(f"{format_list(classes, _MAX_NAMED_CLASSES)} of the {ordinal} alone")
    return f"{first.name} and {other.name} know other classes: {'; '.join(parts)}"


def _describe_image_mismatch(split_images: Sequence[_SplitImages]) -> str | None:
    """How the images of the first run that has others than the first differ from those; None where there is none."""
    first = split_images[0]
    other = next((images for images in split_images if images.keys != first.keys), None)
    if other is None:
        return None
    run_names = f"{first.run_name} and {other.run_name}"
    first_paths, other_paths = ({path for path, _ in images.keys} for images in (first, other))
    if unshared := sorted(first_paths ^ other_paths):
        split_text = first.split if first.split == other.split else f"{first.split} and {other.split}"
        return (
            f"{run_names} have other images in {split_text}: {format_count(len(first_paths - other_paths), 'image')} of the first alone, "
            f"{len(other_paths - first_paths):,} of the second alone, such as {unshared[0]}; give images for all with --data"
        )
    (path, label), (_, other_label) = next(
        pair for pair in zip(first.keys, other.keys, strict=True) if pair[0] != pair[1]
    )
    return f"{run_names} have other classes for {path}: {label} and {other_label}; give images for all with --data"
