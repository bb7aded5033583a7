"""Comparison of runs: settings, curves, and accuracy on the same images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.comparison.loaded_run import LoadedRun, load_runs
from ftcli.comparison.predictions import RunEvaluation, evaluate_all
from ftcli.comparison.significance import run_pairwise_tests
from ftcli.errors import RecipeError
from ftcli.files import atomic_write, check_writable
from ftcli.plotting import describe_missing_characters, fit_text
from ftcli.results import ComparedRun, CompareResult, ConfigDifference, Reporter, format_count
from ftcli.runs.curves import plot_comparison
from ftcli.statistics import wilson_interval

logger = logging.getLogger(__name__)

DEFAULT_PLOT = Path("comparison.png")
_ENVIRONMENT_KEYS = ("ftcli", "python", "torch", "torchvision", "platform", "device", "threads")
"""Keys of run.json that describe the environment of a run."""

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """Arguments of `ftcli compare`: run directories or checkpoints, images and split as for `ftcli evaluate`, and the
    file of the plot, None for DEFAULT_PLOT."""

    runs: tuple[Path, ...]
    data: Path | None = None
    split: str | None = None
    out: Path | None = None
    device: str


def compare(args: CompareArgs, reporter: Reporter) -> CompareResult:
    """Compare runs; the result gives the reason if they cannot be evaluated on the same images.

    Raises RecipeError or CheckpointError for runs that cannot be compared, and for given images or a given split what
    `evaluate_checkpoint` raises.
    """
    runs = load_runs(args.runs)
    plot_path = _choose_plot_path(args, runs)
    evaluations, reason = evaluate_all(runs, args.data, args.split, args.device, reporter)
    warnings = (
        *_find_incomplete_runs(runs),
        *_find_different_validation(runs),
        *_find_train_test_overlap(runs, evaluations, args),
    )
    for warning in warnings:
        logger.warning(warning)
    if plot_path is not None:
        _write_plot(runs, plot_path)
    return CompareResult(
        runs=tuple(
            _build_compared_run(run, evaluations[index] if evaluations else None) for index, run in enumerate(runs)
        ),
        settings=diff_configs(runs),
        split=evaluations[0].split if evaluations else None,
        images=len(evaluations[0].keys) if evaluations else 0,
        differences=run_pairwise_tests([evaluation.predictions for evaluation in evaluations]),
        why=reason,
        picture=plot_path,
        warnings=warnings,
    )


def _choose_plot_path(args: CompareArgs, runs: Sequence[LoadedRun]) -> Path | None:
    """Return the file of the plot; None if no checkpoint is in a run directory. Raises RecipeError if not writable."""
    if any(run.history for run in runs):
        check_writable(path := args.out or DEFAULT_PLOT, "--out", [".png"])
        return path
    if args.out is not None:
        raise RecipeError(f"--out: {args.out} would be empty: no checkpoint is in its run directory; omit it")
    return None


def _write_plot(runs: Sequence[LoadedRun], path: Path) -> None:
    plotted_runs = [run for run in runs if run.history]
    atomic_write(path, plot_comparison([run.name for run in plotted_runs], [run.history for run in plotted_runs]))
    stages = {row.stage for run in plotted_runs for row in run.history}
    if missing := describe_missing_characters(map(fit_text, [*(run.name for run in plotted_runs), *sorted(stages)])):
        logger.warning(f"{path}: {missing}")


def _find_incomplete_runs(runs: Sequence[LoadedRun]) -> list[str]:
    """Return a warning for each run whose metrics are not those of a complete training from its start."""
    names_by_digest = {run.checkpoint.digest: run.name for run in runs}
    warnings = []
    for run in runs:
        if run.metadata is not None and run.metadata.get("ended") is None:
            warnings.append(f"{run.name}: has not finished training; its metrics are the latest ones")
        parent_digest = run.checkpoint.origin.get("checkpoint")
        if run.history and parent_digest is not None:
            parent = names_by_digest.get(parent_digest, "another checkpoint")
            warnings.append(f"{run.name}: resumed from {parent}; its epochs and seconds count from there")
    return warnings


def _find_different_validation(runs: Sequence[LoadedRun]) -> list[str]:
    first, first_images = runs[0].name, runs[0].list_image_paths("val")
    others = [run.name for run in runs[1:] if run.list_image_paths("val") != first_images]
    if not others:
        return []
    return [f"{', '.join(others)}: validated on other images than {first}, so validation losses are not comparable"]


def _find_train_test_overlap(
    runs: Sequence[LoadedRun], evaluations: Sequence[RunEvaluation], args: CompareArgs
) -> list[str]:
    """Return a warning for each run that was trained on test images of any run."""
    test_images = {path for evaluation in evaluations for path, _ in evaluation.keys}
    if args.data is None:  # also without an evaluation
        test_images |= {path for run in runs for path in run.list_image_paths(args.split or "test")}
    return [
        f"{run.name}: was trained on {len(overlap):,} of {format_count(len(test_images), 'test image')} of the runs, "
        f"such as {overlap[0]}; the comparison is biased"
        for run in runs
        if (overlap := sorted(run.list_image_paths("train") & test_images))
    ]


def _build_compared_run(run: LoadedRun, evaluation: RunEvaluation | None) -> ComparedRun:
    val_loss, val_accuracy = run.val_metrics
    accuracy = low = high = None
    if evaluation is not None:
        num_correct, num_images = int(evaluation.predictions.correct.sum()), len(evaluation.keys)
        accuracy, (low, high) = num_correct / num_images, wilson_interval(num_correct, num_images)
    return ComparedRun(
        name=run.name,
        run=run.run_dir,
        checkpoint=run.checkpoint_path,
        epochs=sum(row.epoch > 0 for row in run.history) if run.history else None,
        seconds=round(sum(row.seconds for row in run.history), 3) if run.history else None,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        accuracy=accuracy,
        low=low,
        high=high,
        loss=evaluation.loss if evaluation else None,
    )


def diff_configs(runs: Sequence[LoadedRun]) -> tuple[ConfigDifference, ...]:
    """Return the keys in which runs differ: of the recipes, with stages by name; the trained stages; under `origin` the
    source of the weights; under `run` the environment and the dataset fingerprint.

    The name of a run is ignored, and null equals a missing key. Lists are compared as a whole, as are mappings if
    another run has a scalar. Runs without run.json have None under `run`.
    """
    differences = _diff_values("", [_key_stages_by_name(run.checkpoint.recipe) for run in runs])
    differences += _diff_values("trained stages", [_list_trained_stages(run) for run in runs])
    # The recipe has the source of the weights too, but not their digest.
    origins = [run.checkpoint.origin for run in runs]
    differences += _diff_values(
        "origin", [{key: origin[key] for key in origin if key != "weights"} for origin in origins]
    )
    known_metadata = [run.metadata for run in runs if run.metadata is not None]
    for difference in _diff_values("run", [_pick_environment(metadata) for metadata in known_metadata]):
        values = iter(difference.values)
        values_by_run = tuple(None if run.metadata is None else next(values) for run in runs)
        differences.append(ConfigDifference(difference.key, values_by_run))
    return tuple(differences)


def _key_stages_by_name(recipe: JsonObject) -> JsonObject:
    stages = {stage["name"]: {key: stage[key] for key in stage if key != "name"} for stage in recipe["stages"]}
    return {key: recipe[key] for key in recipe if key not in ("name", "stages")} | {"stages": stages}


def _list_trained_stages(run: LoadedRun) -> list[str]:
    """Return the stages in the history of a run, or those of its recipe without a history."""
    stages = [row.stage for row in run.history] or [stage["name"] for stage in run.checkpoint.recipe["stages"]]
    return list(dict.fromkeys(stages))


def _pick_environment(metadata: JsonObject) -> JsonObject:
    data = metadata.get("data")
    return {key: metadata.get(key) for key in _ENVIRONMENT_KEYS} | {
        "data": {"fingerprint": data.get("fingerprint") if isinstance(data, dict) else None}
    }


def _diff_values(key: str, values: Sequence[Any]) -> list[ConfigDifference]:
    """Return the differences at and below a key, in the order of the values."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, Mapping) for value in present):
        names = dict.fromkeys(name for value in present for name in value)
        return [
            difference
            for name in names
            for difference in _diff_values(
                f"{key}.{name}" if key else name, [value and value.get(name) for value in values]
            )
        ]
    if all(value == values[0] for value in values):
        return []
    return [ConfigDifference(key, tuple(values))]
