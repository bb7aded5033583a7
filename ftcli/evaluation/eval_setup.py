"""What a checkpoint gives for the images of a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ftcli.data.dataset import ImageDataset, list_split
from ftcli.data.loader import LoaderConfig, default_num_workers
from ftcli.errors import DataError, RecipeError, RunError, suggest
from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.evaluation.head_features import cut_at_head, open_eval_loader
from ftcli.evaluation.logits import NO_TTA, TTA, EvalOutputs, predict_logits
from ftcli.features.pipeline import FeaturePipeline
from ftcli.planning import align_classes, load_dataset
from ftcli.recipe.loading import RecipeFile
from ftcli.results import ProgressTask, Reporter, format_count
from ftcli.runs.checkpoint import Checkpoint
from ftcli.runs.run_dir import find_checkpoint
from ftcli.runtime import choose_device, raise_on_oom


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """What the user asked: without `data` the images of the checkpoint's own recipe, without `split` the test split
    where there is one, else val; all of `data` where that has no splits. Where `batch_size` or `workers` is None, the
    recipe tells. `views` names what each image is averaged over, None for the image alone. With `cache` what the head
    is given for an image alone is kept and found again; `verify` digests every image anew for that."""

    checkpoint: Path
    data: Path | None = None
    split: str | None = None
    device: str
    batch_size: int | None = None
    num_workers: int | None = None
    tta: str | None = None
    use_cache: bool = True
    rehash: bool = False


@dataclass(frozen=True)
class EvalSetup:
    """A classifier and the images that a question is about. `images` has at least the split; those of the checkpoint's
    own recipe have all. `document` is the recipe in the checkpoint, which was read from `path`. `open_inputs` gives
    what finds the inputs of the head in the cache, None where there is none or it is not wanted."""

    checkpoint_path: Path
    checkpoint: Checkpoint
    recipe_file: RecipeFile
    classifier: Classifier
    dataset: ImageDataset
    split: str
    args: EvaluateArgs
    get_head_features: Callable[[], FeaturePipeline | None]


@dataclass(frozen=True)
class EvalRun(EvalSetup):
    """The same with the outputs for the split."""

    outputs: EvalOutputs


def evaluate_checkpoint(args: EvaluateArgs, reporter: Reporter) -> EvalRun:
    """Compute what a checkpoint gives for the images of a question. Raises as `setup_eval` and `predict_split` do."""
    return run_eval(setup_eval(args, reporter), reporter)


def run_eval(setup: EvalSetup, reporter: Reporter) -> EvalRun:
    """Compute the outputs for the split of a case. Raises as `predict_split` does."""
    outputs = predict_split(setup, setup.dataset, setup.split, reporter, setup.args.tta)
    return EvalRun(**vars(setup), outputs=outputs)


def setup_eval(args: EvaluateArgs, reporter: Reporter) -> EvalSetup:
    """Load the checkpoint of a question and list its images; none is read yet.

    Classes are matched by name, and the images of a split are those it had in training. Raises CheckpointError for a
    checkpoint that cannot be used or that has other classes, DataError for images that are not there, RecipeError for
    options that do not go together. The reporter is warned where a split of the checkpoint's own recipe has lost or
    gained images since training.
    """
    if args.rehash and not args.use_cache:
        raise RecipeError("--rehash: does nothing with --no-cache; leave one out")
    if args.rehash and args.tta is not None:
        raise RecipeError(f"--rehash: does nothing with --tta {args.tta}, which uses no cache; leave one out")
    path, note = find_checkpoint(args.checkpoint)
    if note:
        reporter.info(note)
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
    dataset = load_checkpoint_dataset(recipe_file, checkpoint, path, reporter)
    known_splits = {*dataset.splits, *checkpoint.held}
    split = ("test" if "test" in known_splits else "val") if args.split is None else args.split
    if split not in dataset.splits:
        if previous_paths := checkpoint.held.get(split):
            raise DataError(
                f"{path}: {dataset.source} has no {split} any more, of which training knew "
                f"{format_count(len(previous_paths), 'image')}; put them back, or give --split {' or '.join(dataset.splits)}"
            )
        split_text = split or repr(split)
        raise DataError(f"--split {split_text}: {dataset.source} has no such split; {suggest(split, dataset.splits)}")
    _warn_about_split_changes(checkpoint, dataset, split, path, reporter)
    return EvalSetup(path, checkpoint, recipe_file, classifier, dataset, split, args, get_head_features)


def _warn_about_split_changes(
    checkpoint: Checkpoint, dataset: ImageDataset, split: str, path: Path, reporter: Reporter
) -> None:
    """Warn where a split is not, image by image, what training knew."""
    previous_paths, current_paths = (
        set(checkpoint.held.get(split, ())),
        {sample.path for sample in dataset.splits[split]},
    )
    changes = [
        f"{format_count(len(paths), 'image')} {kind}, such as {min(paths)}"
        for paths, kind in ((previous_paths - current_paths, "missing"), (current_paths - previous_paths, "added"))
        if paths
    ]
    if previous_paths and changes:
        reporter.warn(f"{path}: {split} is not as it was in training: {'; '.join(changes)}")


def load_checkpoint_dataset(
    recipe_file: RecipeFile, checkpoint: Checkpoint, path: Path, reporter: Reporter
) -> ImageDataset:
    """The images of a checkpoint's own recipe, each in the split that it was in. Raises as `setup_eval` does."""
    dataset = load_dataset(recipe_file, reporter, checkpoint.splits_by_path())
    return align_classes(dataset, checkpoint.classes, str(path))


def predict_split(
    setup: EvalSetup, dataset: ImageDataset, split: str, reporter: Reporter, tta: str | None = None
) -> EvalOutputs:
    """The outputs for every image of a split, averaged over the `views` of that name. What the cache has of an image
    alone is taken from there; else images come in batches of the size that the question or the recipe tells.

    Raises RunError for outputs that are not finite, or where memory runs out.
    """
    data_config, args, task = setup.recipe_file.recipe.data, setup.args, ProgressTask(f"evaluating {split}", reporter)
    requested_workers = data_config.num_workers if args.num_workers is None else args.num_workers
    num_workers = default_num_workers(requested_workers, setup.classifier.device, dataset)
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
            f"evaluating {split}: the network gives numbers that are not finite for {int((~is_finite).sum())} of "
            f"{len(is_finite)} images, first {path}; take another checkpoint, or train anew with a lower learning rate"
        )
    return outputs
