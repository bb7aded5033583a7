"""What the user asks of an evaluation, and what of it cannot be."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ftcli.errors import RecipeError, suggest
from ftcli.evaluation.eval_setup import EvalSetup
from ftcli.evaluation.logits import TTA
from ftcli.evaluation.prediction_writer import SUFFIXES
from ftcli.evaluation.report import check_report_path
from ftcli.files import check_writable, is_same_file
from ftcli.runs.history import is_run_checkpoint


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `ftcli evaluate` does beside measuring: thresholds for this `recall`, a calibrated checkpoint at `out`, or
    beside the old one, files of all predictions and of the report."""

    min_recall: float | None = None
    calibrate: bool = False
    out: Path | None = None
    predictions: Path | None = None
    report: Path | None = None


def validate_args(options: EvaluateOptions, tta: str | None) -> None:
    """Raise RecipeError with every fault that shows without the checkpoint; `views` is what --tta names."""
    errors: list[str] = []
    if options.min_recall is not None and not 0 < options.min_recall <= 1:
        errors.append(f"--min-recall: {options.min_recall:g} is no share above 0 and up to 1; give one such as 0.95")
    if tta is not None and tta not in TTA:
        errors.append(f"--tta: {tta!r} names no views; {suggest(tta, TTA)}")
    if options.out is not None and not options.calibrate:
        errors.append(
            f"--out: {options.out} is where --calibrate puts its checkpoint; add --calibrate, or leave it out"
        )
    if options.out is not None and options.out.suffix != ".pt":
        errors.append(f"--out: {options.out} does not end in .pt, as checkpoints do; give such a name")
    if options.out is not None and is_run_checkpoint(options.out):
        errors.append(f"--out: {options.out} is a checkpoint that its run goes on from; give another name")
    if options.predictions is not None and (message := _check_predictions_path(options.predictions)):
        errors.append(message)
    for option, path in _list_output_paths(options):
        try:
            if option == "--report":
                check_report_path(path)
            check_writable(path, option)
        except RecipeError as error:
            errors += error.messages
    output_paths = _list_output_paths(options)
    for index, (option, path) in enumerate(output_paths):
        for other_option, other_path in output_paths[:index]:
            if is_same_file(path, other_path):
                errors.append(f"{option}: {path} is also where {other_option} writes; give each a name of its own")
    if errors:
        raise RecipeError(*errors)


def validate_args_for_checkpoint(options: EvaluateOptions, setup: EvalSetup) -> None:
    """Raise RecipeError with every fault that shows once the checkpoint is known."""
    errors: list[str] = []
    num_classes = len(setup.checkpoint.classes)
    if options.min_recall is not None and num_classes != 2:
        errors.append(
            f"--min-recall: {options.min_recall:g} asks for a threshold between two classes, and {setup.checkpoint_path} has {num_classes}; leave "
            "it out"
        )
    if options.calibrate and options.out is None:
        try:
            check_writable(calibrated_path(setup.checkpoint_path), "--calibrate")
        except RecipeError as error:
            errors += error.messages
    for option, path in _list_output_paths(options):
        if is_same_file(path, setup.checkpoint_path):
            errors.append(f"{option}: {path} is the checkpoint itself, which stays as it is; give another name")
    if errors:
        raise RecipeError(*errors)


def calibrated_path(path: Path) -> Path:
    """Where a calibrated checkpoint goes without --out: beside the old one."""
    return path.with_name(f"{path.stem}-calibrated.pt")


def _check_predictions_path(path: Path) -> str | None:
    """Why no predictions can be written to a file of this name; None where they can."""
    if path.suffix.lower() not in SUFFIXES:
        return f"--predictions: {path} does not end in {' or '.join(SUFFIXES)}; give such a name"
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        return f"--predictions: {path} needs the package pyarrow; pip install 'ftcli[parquet]'"
    return None


def _list_output_paths(options: EvaluateOptions) -> list[tuple[str, Path]]:
    """The files that the user names, each with its option."""
    candidates = (("--out", options.out), ("--predictions", options.predictions), ("--report", options.report))
    return [(option, path) for option, path in candidates if path is not None]
