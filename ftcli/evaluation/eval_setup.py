"""Arguments of `ftcli evaluate`, and the checkpoint, images and outputs that they select."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ftcli.data.dataset import ImageDataset, list_split
from ftcli.data.loader import LoaderConfig, choose_num_workers
from ftcli.errors import DataError, RecipeError, RunError, install_hint, suggest
from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.evaluation.head_features import cut_at_head, open_eval_loader
from ftcli.evaluation.logits import NO_TTA, TTA, EvalOutputs, predict_logits
from ftcli.features.pipeline import FeaturePipeline
from ftcli.files import check_writable, is_same_file
from ftcli.planning import align_classes, load_dataset
from ftcli.recipe.loading import RecipeFile
from ftcli.results import ProgressTask, Reporter, format_count
from ftcli.runs.checkpoint import Checkpoint
from ftcli.runs.history import is_run_checkpoint
from ftcli.runs.run_dir import find_checkpoint
from ftcli.runtime import choose_device, raise_on_oom


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
            ("--out", self.out, (".pt",)),
            ("--predictions", self.predictions, (".csv", ".parquet")),
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
    if args.out is not None and is_run_checkpoint(args.out):
        errors.append(f"--out: {args.out} is a checkpoint from which its run resumes; give another path")
    needs_parquet = args.predictions is not None and args.predictions.suffix.lower() == ".parquet"
    if needs_parquet and importlib.util.find_spec("pyarrow") is None:
        errors.append(f"--predictions: {args.predictions} needs the package pyarrow; {install_hint('parquet')}")
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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalSetup:
    """A checkpoint, its classifier, and the dataset and split to evaluate.

    `recipe_file` is the recipe stored in the checkpoint. `get_head_features` cuts the network before its head; it
    returns None if that is not possible or the cache is off.
    """

    checkpoint_path: Path
    checkpoint: Checkpoint
    recipe_file: RecipeFile
    classifier: Classifier
    dataset: ImageDataset
    split: str
    args: EvaluateArgs
    get_head_features: Callable[[], FeaturePipeline | None]


def evaluate_checkpoint(
    args: EvaluateArgs, reporter: Reporter, dataset: ImageDataset | None = None
) -> tuple[EvalSetup, EvalOutputs]:
    """Load a checkpoint and compute its outputs. Raises as `setup_eval` and `predict_split` do."""
    setup = setup_eval(args, reporter, dataset)
    return setup, predict_split(setup, setup.dataset, setup.split, reporter, args.tta)


def setup_eval(args: EvaluateArgs, reporter: Reporter, dataset: ImageDataset | None = None) -> EvalSetup:
    """Load a checkpoint and list its images, without reading any.

    Classes are matched by name. Images keep their split of training; a warning is logged if a split has lost or
    gained images since. `dataset` saves listing the images of the checkpoint's recipe a second time. Raises
    CheckpointError for a checkpoint that cannot be loaded or has other classes, DataError for missing images.
    """
    path, note = find_checkpoint(args.checkpoint)
    if note:
        logger.info(note)
    loaded = load_classifier(path, choose_device(args.device))
    classifier, checkpoint, recipe_file = loaded.classifier, loaded.checkpoint, loaded.recipe_file

    @cache
    def get_head_features() -> FeaturePipeline | None:
        if not args.use_cache:
            return None
        model, preprocessing = classifier.model, checkpoint.preprocessing
        return cut_at_head(model, checkpoint.head_path, preprocessing, classifier.device, classifier.precision)

    if args.data is not None:
        dataset = list_split(args.data, args.split, checkpoint.classes, "--data")
        (split,) = dataset.splits
        return EvalSetup(path, checkpoint, recipe_file, classifier, dataset, split, args, get_head_features)
    if dataset is None:
        dataset = load_checkpoint_dataset(recipe_file, checkpoint, path, reporter)
    known_splits = {*dataset.splits, *checkpoint.splits}
    split = ("test" if "test" in known_splits else "val") if args.split is None else args.split
    if split not in dataset.splits:
        if previous_paths := checkpoint.splits.get(split):
            num_images = format_count(len(previous_paths), "image")
            raise DataError(
                f"{path}: {dataset.source} no longer has the split {split} ({num_images} in training); restore it, or "
                f"give --split {' or '.join(dataset.splits)}"
            )
        raise DataError(f"--split: unknown split {split!r} of {dataset.source}; {suggest(split, dataset.splits)}")
    _warn_about_split_changes(checkpoint, dataset, split, path)
    return EvalSetup(path, checkpoint, recipe_file, classifier, dataset, split, args, get_head_features)


def _warn_about_split_changes(checkpoint: Checkpoint, dataset: ImageDataset, split: str, path: Path) -> None:
    """Warn if a split does not have the same images as in training."""
    previous_paths, current_paths = (
        set(checkpoint.splits.get(split, ())),
        {sample.path for sample in dataset.splits[split]},
    )
    changes = [
        f"{format_count(len(paths), 'image')} {kind}, such as {min(paths)}"
        for paths, kind in ((previous_paths - current_paths, "missing"), (current_paths - previous_paths, "added"))
        if paths
    ]
    if previous_paths and changes:
        logger.warning(f"{path}: {split} has other images than in training: {'; '.join(changes)}")


def load_checkpoint_dataset(
    recipe_file: RecipeFile, checkpoint: Checkpoint, path: Path, reporter: Reporter
) -> ImageDataset:
    """List the images of a checkpoint's recipe, each in its split of training. Raises as `setup_eval` does."""
    dataset = load_dataset(recipe_file, reporter, checkpoint.splits_by_path())
    return align_classes(dataset, checkpoint.classes, str(path))


def predict_split(
    setup: EvalSetup, dataset: ImageDataset, split: str, reporter: Reporter, tta: str | None = None
) -> EvalOutputs:
    """Compute the outputs for all images of a split, averaged over the views of `tta`.

    Without `tta`, the inputs of the head come from the feature cache. Raises RunError for non-finite outputs and if
    memory runs out.
    """
    data_config, args, task = setup.recipe_file.recipe.data, setup.args, ProgressTask(f"evaluating {split}", reporter)
    requested_workers = data_config.num_workers if args.num_workers is None else args.num_workers
    num_workers = choose_num_workers(requested_workers, setup.classifier.device, dataset)
    loader_config = LoaderConfig(dataset.root, data_config.on_corrupt_image, num_workers, rehash=args.rehash)
    batch_size = args.batch_size or data_config.batch_size
    pipeline = setup.get_head_features() if tta is None else None
    views = NO_TTA if tta is None else TTA[tta]
    samples, classifier = dataset.splits[split], setup.classifier
    with (
        raise_on_oom(),
        open_eval_loader(classifier, pipeline, samples, loader_config, batch_size, task, views) as (loader, forward),
    ):
        outputs = predict_logits(classifier.model, forward, loader, task)
    is_finite = outputs.logits.isfinite().all(1)
    if not is_finite.all():
        path = outputs.paths[int(is_finite.int().argmin())]
        raise RunError(
            f"evaluating {split}: the logits of {int((~is_finite).sum())} of "
            f"{format_count(len(is_finite), 'image')} are not finite, "
            f"such as those of {path}; use another checkpoint, or train again with a "
            "lower learning rate"
        )
    return outputs
