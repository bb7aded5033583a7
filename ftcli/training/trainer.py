"""A training, from an order to its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch._dynamo  # noqa: F401  the first optimizer would import it, which takes seconds that are no stage's

from ftcli.data.loader import LoaderConfig, default_num_workers
from ftcli.errors import RecipeError, StopRequestedError
from ftcli.evaluation.head_features import cut_at_head, open_eval_loader
from ftcli.evaluation.logits import EvalOutputs, predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.files import lock_dir, make_dir
from ftcli.models.state_dict import copy_state_dict
from ftcli.planning import HeadFitPlan
from ftcli.recipe.loading import dump_recipe
from ftcli.recipe.schema import HeadFitStage
from ftcli.results import Reporter, StageResult, StageTimes, TestResult, TrainResult
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runtime import choose_device, raise_on_oom
from ftcli.training.checkpointing import results_from_dict
from ftcli.training.fit_head import fit_head_stage
from ftcli.training.loop import fit_stage
from ftcli.training.precision import resolve_run_precision
from ftcli.training.profiler import describe_bottleneck
from ftcli.training.resume import StartPoint, TrainArgs, list_stage_names, resolve_start
from ftcli.training.setup import RunSetup, run_metadata, setup_run, utc_now
from ftcli.training.signals import GracefulStop
from ftcli.training.stage import Trainer


def train(args: TrainArgs, reporter: Reporter) -> TrainResult:
    """Train what an order asks for, stage after stage, each from the best weights of the one before.

    Raises FtcliError: before anything is written for an order, recipe, data or weights that cannot be used, and
    while running for what goes wrong then; what was reached is saved.
    """
    start_point = replace(resolve_start(args, reporter), rehash=args.rehash)
    device = choose_device(args.device)
    if start_point.is_finished:
        return _report_finished_run(start_point, reporter)
    setup = resolve_run_precision(setup_run(start_point, device, reporter), reporter)
    with _open_run(setup, reporter) as trainer:
        saved_progress = setup.saved_progress
        for stage in setup.remaining_stages:
            if isinstance(stage, HeadFitPlan):
                fit_head_stage(trainer, stage, saved_progress)
            else:
                fit_stage(trainer, stage, saved_progress)
            setup.checkpointer.folder.write_curves(setup.checkpointer.history)
            saved_progress = None
        return _finish_run(setup, trainer)


@contextmanager
def _open_run(setup: RunSetup, reporter: Reporter) -> Iterator[Trainer]:
    folder, is_exact_resume = setup.start_point.folder, setup.start_point.is_exact_resume
    make_dir(folder.path)
    with lock_dir(folder.path), GracefulStop(reporter) as stop, raise_on_oom():
        if not is_exact_resume and folder.has_run():
            raise RecipeError(
                f"{folder.path}: another run has begun there in the meantime; start again, or give another --out"
            )
        try:
            folder.write_initial_files(dump_recipe(setup.plan.recipe), run_metadata(setup))
            reporter.info(_run_banner(setup))
            yield Trainer(setup, reporter, stop)
        finally:
            folder.remove_if_empty()


def _run_banner(setup: RunSetup) -> str:
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in setup.dataset.splits.items())
    action = "Going on in" if setup.start_point.is_exact_resume else "Training in"
    return (
        f"{action} {setup.start_point.folder.path} on {setup.classifier.device}: {setup.plan.recipe.backbone.name}, "
        f"{len(setup.dataset.classes)} classes, {counts} images at {setup.plan.preprocessing.image_size} px"
    )


def _finish_run(setup: RunSetup, trainer: Trainer) -> TrainResult:
    folder, checkpointer, model = setup.start_point.folder, setup.checkpointer, setup.classifier.model
    copy_state_dict(model, read_checkpoint(folder.best_loss).state)
    test_result = None
    if "test" in setup.dataset.splits:
        try:
            outputs = _test(setup, trainer)
        except StopRequestedError:
            raise trainer.stop.error(f"Stopped in the test; go on with: ftcli train --resume {folder.last}") from None
        checkpointer.skipped.update(outputs.skipped)
        test_result = TestResult(compute_loss(outputs), compute_accuracy(outputs), len(outputs.paths))
    checkpointer.save_final(model, test_result)
    folder.write_metadata(run_metadata(setup, utc_now()))
    return TrainResult(
        folder.path,
        folder.best_loss,
        tuple(checkpointer.results),
        test_result,
        tuple(sorted(checkpointer.skipped)),
        _next_command(setup.start_point),
        _describe_bottleneck(checkpointer.results),
    )


def _test(setup: RunSetup, trainer: Trainer) -> EvalOutputs:
    """Compute the outputs of the best weights for the test images as `evaluate` does. Raises StopRequestedError."""
    data, dataset, classifier = setup.plan.recipe.data, setup.dataset, setup.classifier
    pipeline = None
    if all(isinstance(plan.stage, HeadFitStage) or plan.stage.cache != "off" for plan in setup.plan.stages):
        head_path = setup.plan.head.path
        pipeline = cut_at_head(
            classifier.model, head_path, classifier.preprocessing, classifier.device, classifier.precision
        )
    num_workers = default_num_workers(data.num_workers, classifier.device, dataset)
    loader_config = LoaderConfig(dataset.root, data.on_corrupt_image, num_workers, rehash=setup.start_point.rehash)
    samples, task = dataset.splits["test"], trainer.task("test")
    with open_eval_loader(classifier, pipeline, samples, loader_config, data.batch_size, task) as (loader, forward):
        return predict_logits(classifier.model, forward, loader, task)


def _report_finished_run(start_point: StartPoint, reporter: Reporter) -> TrainResult:
    """The result of a run that has nothing left to do."""
    assert start_point.checkpoint is not None
    assert start_point.checkpoint.progress is not None
    progress, folder = start_point.checkpoint.progress, start_point.folder
    folder.check_resumable(())
    reporter.info(f"{folder.path} is finished; this is its result")
    test_result = None if progress["test"] is None else TestResult(**progress["test"])
    results = results_from_dict(progress)
    return TrainResult(
        folder.path,
        folder.best_loss,
        tuple(results),
        test_result,
        tuple(progress["skipped"]),
        _next_command(start_point),
        _describe_bottleneck(results),
    )


def _describe_bottleneck(results: Sequence[StageResult]) -> str | None:
    return describe_bottleneck(sum((stage.times for stage in results), StageTimes()))


def _next_command(start_point: StartPoint) -> str:
    """The command to type next: train the stage that follows, or evaluate."""
    best_checkpoint, stage_names = start_point.folder.best_loss, list_stage_names(start_point.recipe_file.recipe)
    remaining_names = stage_names[stage_names.index(start_point.stage_names[-1]) + 1 :]
    if remaining_names:
        return f"ftcli train --stage {remaining_names[0]} --resume {best_checkpoint}"
    return f"ftcli evaluate {best_checkpoint}"
