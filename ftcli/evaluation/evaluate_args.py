"""Arguments of `ftcli evaluate` and their validation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.errors import RecipeError, suggest
from ftcli.evaluation.logits import TTA
from ftcli.evaluation.prediction_writer import SUFFIXES
from ftcli.files import check_writable, is_same_file
from ftcli.runs.history import is_run_checkpoint


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Arguments of `ftcli evaluate`.

    Without `data`, images come from the checkpoint's own recipe; without `split`, from its test split, or val if it has
    none. A None for `batch_size` or `num_workers` means the recipe's value. `tta` is a key of TTA. `use_cache` caches
    the inputs of the head; `rehash` hashes every image again. `out` is the path of the calibrated checkpoint.
    """

    checkpoint: Path
    data: Path | None = None
    split: str | None = None
    device: str
    batch_size: int | None = None
    num_workers: int | None = None
    tta: str | None = None
    use_cache: bool = True
    rehash: bool = False
    min_recall: float | None = None
    calibrate: bool = False
    out: Path | None = None
    predictions: Path | None = None
    report: Path | None = None

    def output_paths(self) -> list[tuple[str, Path, Sequence[str]]]:
        """Return the options of output files with their path and allowed suffixes."""
        candidates = (
            ("--out", self.out, ()),
            ("--predictions", self.predictions, SUFFIXES),
            ("--report", self.report, (".html", ".htm")),
        )
        return [(option, path, suffixes) for option, path, suffixes in candidates if path is not None]


def validate_args(args: EvaluateArgs) -> None:
    """Raise RecipeError with all errors that can be found without the checkpoint."""
    errors = [*_find_option_errors(args), *_find_path_errors(args)]
    if errors:
        raise RecipeError(*errors)


def validate_args_for_checkpoint(args: EvaluateArgs, checkpoint_path: Path, num_classes: int) -> None:
    """Raise RecipeError with all errors that depend on the checkpoint."""
    errors: list[str] = []
    if args.min_recall is not None and num_classes != 2:
        errors.append(
            f"--min-recall: {args.min_recall:g} needs a checkpoint with two classes, but {checkpoint_path} has "
            f"{num_classes}; omit it"
        )
    if args.calibrate and args.out is None:
        try:
            check_writable(calibrated_path(checkpoint_path), "--calibrate")
        except RecipeError as error:
            errors += error.messages
    for option, path, _ in args.output_paths():
        if is_same_file(path, checkpoint_path):
            errors.append(
                f"{option}: {path} is the evaluated checkpoint, which is never overwritten; give another path"
            )
    if errors:
        raise RecipeError(*errors)


def calibrated_path(path: Path) -> Path:
    """Return the path of the calibrated checkpoint without --out, next to the evaluated one."""
    return path.with_name(f"{path.stem}-calibrated.pt")


def _find_option_errors(args: EvaluateArgs) -> list[str]:
    errors = []
    if args.min_recall is not None and not 0 < args.min_recall <= 1:
        errors.append(f"--min-recall: {args.min_recall:g} is not above 0 and at most 1; give a recall such as 0.95")
    if args.tta is not None and args.tta not in TTA:
        errors.append(f"--tta: unknown views {args.tta!r}; {suggest(args.tta, TTA)}")
    if args.rehash and not args.use_cache:
        errors.append("--rehash: has no effect with --no-cache; omit one of them")
    if args.rehash and args.tta in TTA:
        errors.append(f"--rehash: has no effect with --tta {args.tta}, which uses no cache; omit one of them")
    if args.out is not None and not args.calibrate:
        errors.append(f"--out: {args.out} has no effect without --calibrate; add it, or omit --out")
    return errors


def _find_path_errors(args: EvaluateArgs) -> list[str]:
    errors = []
    if args.out is not None and args.out.suffix != ".pt":  # lower case, by which checkpoints are recognized
        errors.append(f"--out: {args.out} does not end in .pt; give a path that does")
    if args.out is not None and is_run_checkpoint(args.out):
        errors.append(f"--out: {args.out} is a checkpoint from which its run resumes; give another path")
    needs_parquet = args.predictions is not None and args.predictions.suffix.lower() == ".parquet"
    if needs_parquet and importlib.util.find_spec("pyarrow") is None:
        errors.append(f"--predictions: {args.predictions} needs pyarrow; run pip install 'ftcli[parquet]'")
    output_paths = args.output_paths()
    for index, (option, path, suffixes) in enumerate(output_paths):
        try:
            check_writable(path, option, suffixes)
        except RecipeError as error:
            errors += error.messages
        for other_option, other_path, _ in output_paths[:index]:
            if is_same_file(path, other_path):
                errors.append(f"{option}: {path} is also the file of {other_option}; give two paths")
    return errors
