"""Runs beside one another: what differs in their recipes, their curves, and their answers to the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.comparison.config_diff import diff_configs
from ftcli.comparison.loaded_run import LoadedRun, load_runs
from ftcli.comparison.predictions import RunEvaluation, evaluate_all
from ftcli.comparison.significance import run_pairwise_tests
from ftcli.errors import RecipeError
from ftcli.files import atomic_write, check_writable
from ftcli.plotting import describe_missing_characters, fit_text
from ftcli.results import ComparedRun, CompareResult, Reporter, format_count
from ftcli.runs.compare_curves import plot_comparison
from ftcli.statistics import wilson_interval

DEFAULT_PLOT = Path("comparison.png")


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """What the user asked: folders of runs or checkpoints; images and a split as `ftcli evaluate` takes them; and the
    file for the picture of the curves, None for PICTURE."""

    runs: tuple[Path, ...]
    data: Path | None = None
    split: str | None = None
    out: Path | None = None
    device: str


def compare(args: CompareArgs, reporter: Reporter) -> CompareResult:
    """Set runs beside one another.

    Where they cannot be measured on the same images, the result says why. Raises RecipeError or CheckpointError for
    runs that cannot be compared at all, and, for images or a split that were asked for, what `measure` raises.
    """
    runs = load_runs(args.runs, reporter)
    plot_path = _choose_plot_path(args, runs)
    evaluations, reason = evaluate_all(runs, args.data, args.split, args.device, reporter)
    warnings = (
        *_find_incomplete_runs(runs),
        *_find_different_validation(runs),
        *_find_train_test_overlap(runs, evaluations, args),
    )
    for warning in warnings:
        reporter.warn(warning)
    if plot_path is not None:
        _write_plot(runs, plot_path, reporter)
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
    """The file for the curves; None where no checkpoint lies in the folder of its run. Raises RecipeError where it
    cannot be written."""
    if any(run.history for run in runs):
        check_writable(path := args.out or DEFAULT_PLOT, "--out", [".png"])
        return path
    if args.out is not None:
        raise RecipeError(
            f"--out: {args.out} would be empty, for none of the checkpoints lies in the folder of its run; leave it out"
        )
    return None


def _write_plot(runs: Sequence[LoadedRun], path: Path, reporter: Reporter) -> None:
    plotted_runs = [run for run in runs if run.history]
    atomic_write(path, plot_comparison([run.name for run in plotted_runs], [run.history for run in plotted_runs]))
    stages = {row.stage for run in plotted_runs for row in run.history}
    if missing := describe_missing_characters(map(fit_text, [*(run.name for run in plotted_runs), *sorted(stages)])):
        reporter.warn(f"{path}: {missing}")


def _find_incomplete_runs(runs: Sequence[LoadedRun]) -> list[str]:
    """A warning for each run whose figures are not those of a whole training."""
    warnings = []
    for run in runs:
        if run.metadata is not None and run.metadata.get("ended") is None:
            warnings.append(f"{run.name}: has not ended its training; its figures are those that it has reached")
        parent_digest = run.checkpoint.origin.get("checkpoint")
        if run.history and parent_digest is not None:
            names_by_digest = {other.checkpoint.digest: other.name for other in runs}
            warnings.append(
                f"{run.name}: carries on from {names_by_digest.get(parent_digest, 'another checkpoint')}; its epochs and seconds are "
                "those since then"
            )
    return warnings


def _find_different_validation(runs: Sequence[LoadedRun]) -> list[str]:
    first, first_images = runs[0].name, runs[0].list_image_paths("val")
    others = [run.name for run in runs[1:] if run.list_image_paths("val") != first_images]
    if not others:
        return []
    return [
        f"{', '.join(others)}: validated on other images than {first}, so that their validation losses cannot be "
        "compared"
    ]


def _find_train_test_overlap(
    runs: Sequence[LoadedRun], evaluations: Sequence[RunEvaluation], args: CompareArgs
) -> list[str]:
    """A warning for each run that was trained on images that it, or another, is tested on."""
    test_images = {path for evaluation in evaluations for path, _ in evaluation.keys}
    if args.data is None:  # what each was to be tested on, if it came to no trial
        test_images |= {path for run in runs for path in run.list_image_paths(args.split or "test")}
    return [
        f"{run.name}: was trained on {len(overlap):,} of {format_count(len(test_images), 'image')} that runs are tested on, "
        f"such as {overlap[0]}; such a comparison is unfair"
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
