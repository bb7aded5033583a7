"""Predictions of runs for the same images."""

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
from ftcli.evaluation.eval_setup import EvalSetup, EvaluateArgs, evaluate_checkpoint, load_checkpoint_dataset
from ftcli.evaluation.logits import EvalOutputs
from ftcli.evaluation.metrics import compute_loss
from ftcli.recipe.loading import recipe_from_dict
from ftcli.results import Reporter, format_count

_MAX_NAMED_CLASSES = 5

ImageKey = tuple[str, str]
"""The resolved path of an image and the name of its class."""


@dataclass(frozen=True)
class RunEvaluation:
    """The predictions of a run for the images of a split, in the order of `keys`, and their mean cross-entropy."""

    predictions: RunPredictions
    keys: tuple[ImageKey, ...]
    split: str
    loss: float


def evaluate_all(
    runs: Sequence[LoadedRun], data: Path | None, split: str | None, device: str, reporter: Reporter
) -> tuple[tuple[RunEvaluation, ...], str | None]:
    """Evaluate all runs on the same images, of `data` or of their own recipes; or return none and the reason.

    Raises as `evaluate_checkpoint` does if `data` or `split` is given.
    """
    first = runs[0]
    for other in runs[1:]:
        if set(other.checkpoint.classes) != set(first.checkpoint.classes):
            return (), _describe_class_mismatch(first, other)
    try:
        datasets = [_load_dataset(run, reporter) if data is None else None for run in runs]
        listed = [_list_split_images(run, own, split) for run, own in zip(runs, datasets, strict=True) if own]
        if listed and (reason := _describe_image_mismatch(listed)):  # before any image is read
            return (), reason
        evaluations = []
        for run, dataset in zip(runs, datasets, strict=True):
            args = EvaluateArgs(checkpoint=run.checkpoint_path, data=data, split=split, device=device)
            evaluations.append(_to_common_order(run, *evaluate_checkpoint(args, reporter, dataset)))
    except (CheckpointError, DataError) as error:
        if data is not None or split is not None:
            raise
        return (), f"not all runs can be evaluated: {error.messages[0]}; or give images for all with --data"
    # Corrupt images may have been skipped.
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


def _load_dataset(run: LoadedRun, reporter: Reporter) -> ImageDataset:
    recipe_file = recipe_from_dict(run.checkpoint.recipe, str(run.checkpoint_path))
    return load_checkpoint_dataset(recipe_file, run.checkpoint, run.checkpoint_path, reporter)


def _list_split_images(run: LoadedRun, dataset: ImageDataset, split: str | None) -> _SplitImages:
    """List the images that a run would be evaluated on; empty without the split, an error of `evaluate_checkpoint`."""
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
    """Return the predictions in an order of images and classes that does not depend on the run."""
    classes = setup.classifier.classes
    keys = _make_image_keys(setup.dataset, outputs.paths, outputs.labels.tolist())
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    sorted_indices = {name: index for index, name in enumerate(sorted(classes))}
    to_sorted_index = np.array([sorted_indices[name] for name in classes], dtype=np.int64)
    predicted, labels = outputs.predicted.numpy(), outputs.labels.numpy()
    predictions = RunPredictions(run.name, to_sorted_index[predicted[order]], to_sorted_index[labels[order]])
    return RunEvaluation(predictions, tuple(keys[index] for index in order), setup.split, compute_loss(outputs))


def _describe_class_mismatch(first: LoadedRun, other: LoadedRun) -> str:
    """Name the first few classes that only one of two runs has."""
    first_classes, other_classes = (set(run.checkpoint.classes) for run in (first, other))
    parts = []
    for classes, ordinal in (
        (sorted(first_classes - other_classes), "first"),
        (sorted(other_classes - first_classes), "second"),
    ):
        if classes:
            parts.append(f"{format_list(classes, _MAX_NAMED_CLASSES)} only in the {ordinal}")
    return f"{first.name} and {other.name} have different classes: {'; '.join(parts)}"


def _describe_image_mismatch(split_images: Sequence[_SplitImages]) -> str | None:
    """Describe how the first run with other images differs from runs[0]; None if all have the same."""
    first = split_images[0]
    other = next((images for images in split_images if images.keys != first.keys), None)
    if other is None:
        return None
    run_names = f"{first.run_name} and {other.run_name}"
    first_paths, other_paths = ({path for path, _ in images.keys} for images in (first, other))
    if unshared := sorted(first_paths ^ other_paths):
        split_text = first.split if first.split == other.split else f"{first.split} and {other.split}"
        return (
            f"{run_names} have different images in {split_text}: "
            f"{format_count(len(first_paths - other_paths), 'image')} only in the first, "
            f"{len(other_paths - first_paths):,} only in the second, such as {unshared[0]}; "
            "give images for all with --data"
        )
    (path, label), (_, other_label) = next(
        pair for pair in zip(first.keys, other.keys, strict=True) if pair[0] != pair[1]
    )
    return f"{run_names} have different classes for {path}: {label} and {other_label}; give images for all with --data"
