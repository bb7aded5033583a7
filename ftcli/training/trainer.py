"""Train the stages of a run in order, and test its best weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch._dynamo  # noqa: F401  the first optimizer imports it, which takes seconds; they must not count for a stage

from ftcli.data.batches import Batch
from ftcli.data.loader import LoaderConfig, choose_num_workers, epoch_permutation
from ftcli.errors import DataError, FtcliError, RecipeError, RunError, StopRequestedError
from ftcli.evaluation.head_features import cut_at_head, open_eval_loader
from ftcli.evaluation.logits import predict_logits
from ftcli.evaluation.metrics import compute_accuracy, compute_loss
from ftcli.files import lock_dir, make_dir
from ftcli.models.freezing import set_train_mode
from ftcli.models.state_dict import copy_state_dict
from ftcli.planning import AnyStagePlan, HeadFitPlan, StagePlan, estimate_seconds
from ftcli.recipe.loading import dump_recipe
from ftcli.recipe.schema import EarlyStopping, HeadFitStage
from ftcli.results import (
    Progress,
    ProgressTask,
    Reporter,
    StageResult,
    StageTimes,
    TestResult,
    TrainResult,
    format_count,
    format_duration,
)
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runtime import choose_device, derive_seed, raise_on_oom, seed_step
from ftcli.training.checkpointing import results_from_dict
from ftcli.training.fit_head import fit_head_stage
from ftcli.training.optim import lr_at_step, set_lr
from ftcli.training.profiler import StageProfiler, describe_bottleneck
from ftcli.training.resume import StartPoint, TrainArgs, list_stage_names, resolve_start
from ftcli.training.setup import RunSetup, run_metadata, setup_run, utc_now
from ftcli.training.signals import GracefulStop
from ftcli.training.stage import StageContext
from ftcli.training.stage_data import open_stage_data
from ftcli.training.step import take_step

logger = logging.getLogger(__name__)


def train(args: TrainArgs, reporter: Reporter) -> TrainResult:
    """Train the stages that the arguments select, each from the best weights of the one before.

    Raises FtcliError for unusable arguments, recipe, data or weights, before anything is written; and for errors during
    training, after the progress is saved.
    """
    start_point = resolve_start(args)
    device = choose_device(args.device)
    if start_point.is_finished:
        return _report_finished_run(start_point)
    return Trainer(setup_run(start_point, device, reporter), reporter).fit()


class Trainer:
    """Trains the remaining stages of a run and tests its best weights."""

    def __init__(self, setup: RunSetup, reporter: Reporter) -> None:
        self.setup, self.reporter = setup, reporter
        self.model, self.checkpointer = setup.classifier.model, setup.checkpointer
        self.run_dir = setup.start_point.run_dir
        self.stop = GracefulStop()

    def fit(self) -> TrainResult:
        """Train all remaining stages, test the best weights of the run, and return its result."""
        with self._open_run_dir():
            saved_progress = self.setup.start_point.saved_progress
            for plan in self.setup.remaining_stages:
                self.fit_stage(plan, saved_progress)
                saved_progress = None
            copy_state_dict(self.model, read_checkpoint(self.run_dir.best_checkpoint).state)
            test_result = self.test() if "test" in self.setup.dataset.splits else None
            self.checkpointer.save_final(self.model, test_result)
            self.run_dir.write_metadata(run_metadata(self.setup, utc_now()))
        results, skipped = self.checkpointer.results, self.checkpointer.skipped
        return _create_result(self.setup.start_point, results, test_result, skipped)

    def fit_stage(self, plan: AnyStagePlan, saved_progress: Mapping[str, Any] | None = None) -> StageResult:
        """Train one stage and load its best weights into the model.

        `saved_progress`, from a last.pt of this stage, resumes it at the saved step. Raises RunError if the loss is not
        finite or a frozen tensor changed, and RunInterruptedError after a signal, when the progress is saved.
        """
        context = StageContext.create(self.setup, plan, saved_progress, self.reporter, self.stop)
        try:
            if isinstance(plan, HeadFitPlan):
                fit_head_stage(context, plan)
            else:
                self._fit_epochs(context, plan)
        except StopRequestedError:
            context.interrupt("feature extraction")
        except FtcliError:
            with suppress(RunError):  # a full disk must not hide the first error
                context.save_after_error()
            raise
        result = context.finish()
        self.run_dir.write_curves(self.checkpointer.history)
        return result

    def _fit_epochs(self, context: StageContext, plan: StagePlan) -> None:
        state, stage, digests = context.state, plan.stage, context.state.frozen_digests
        with open_stage_data(self.setup, plan, context.profiler, context.task(stage.name), digests) as context.data:
            self.checkpointer.reset_save_timer()
            while state.epoch < stage.epochs and not should_stop_early(
                self.checkpointer.list_val_losses(stage.name), stage.early_stopping
            ):
                if state.epoch >= 0:
                    self.train_one_epoch(context)
                self.validate(context)
                if state.epoch == 0:
                    logger.info(self._stage_banner(context, plan))

    def train_one_epoch(self, context: StageContext) -> None:
        """Train one epoch, or its remaining steps after a resume.

        Step t of epoch e depends on the seed, the stage, e and t alone, so that a resumed run computes the same bits.
        """
        stage, state, train_loader = context.stage, context.state, context.data.train_loader
        epoch, steps_per_epoch = state.epoch + 1, train_loader.count_batches(merge_last=True)
        permutation = epoch_permutation(context.seed, stage.name, epoch, len(train_loader.samples))
        rng_key = context.data.key_for_epoch(state.epoch)
        set_train_mode(self.model, context.plan.frozen_names)
        seconds_before, start_time = state.training_seconds, time.perf_counter()
        batches = train_loader.batches(permutation, rng_key=rng_key, start=state.step, merge_last=True)
        while (batch := _next_batch(batches, context.profiler)) is not None:
            self.checkpointer.skipped.update(batch.skip_messages)
            position = f"epoch {epoch}, step {state.step + 1} of {steps_per_epoch}"
            if batch.paths:
                self._train_batch(context, batch, position)
            state.step += 1
            state.training_seconds = seconds_before + time.perf_counter() - start_time
            self.reporter.update_progress(
                Progress(
                    f"{stage.name} {epoch}/{stage.epochs}",
                    state.step,
                    steps_per_epoch,
                    state.num_samples / state.training_seconds,
                    f"loss {state.loss_sum / max(1, state.num_samples):.4f}",
                )
            )
            if self.stop.is_set():
                context.interrupt(position)
        context.profiler.synchronize()
        if not state.num_samples:
            raise DataError(
                f"stage {stage.name}: none of the {len(permutation)} training images can be decoded, such as "
                f"{min(self.checkpointer.skipped).rsplit('; ', 1)[0]}; check data.root"
            )

    def _train_batch(self, context: StageContext, batch: Batch, position: str) -> None:
        stage, state = context.stage, context.state
        lr = _current_lr(context, state.epoch, state.step)
        set_lr(context.optimizer, lr)
        seed = derive_seed(context.seed, stage.name, state.epoch + 1, "step", state.step)
        seed_step(seed, self.setup.classifier.device)
        loss, num_correct = take_step(
            self.model,
            context.data.train_forward,
            batch,
            context.optimizer,
            stage,
            context.profiler,
            self.setup.mean_sample_weight,
        )
        if not math.isfinite(loss):
            context.abort_on_nonfinite_loss(position, loss, lr)
        state.loss_sum += loss * len(batch.paths)
        state.correct += num_correct
        state.num_samples += len(batch.paths)

    def validate(self, context: StageContext) -> None:
        """Compute the validation metrics of an epoch and record them with its training metrics."""
        stage, state, data = context.stage, context.state, context.data
        epoch, start_time = state.epoch + 1, time.perf_counter()
        task = context.task(f"{stage.name} {epoch} validation")
        try:
            with context.profiler.measure("validation"):
                outputs = predict_logits(self.model, data.eval_forward, data.val_loader, task)
        except StopRequestedError:
            context.interrupt(f"the validation of epoch {epoch}")
        seconds = state.training_seconds + time.perf_counter() - start_time
        if not state.num_samples:
            context.record_epoch(outputs, seconds=seconds)
            return
        context.record_epoch(
            outputs,
            seconds=seconds,
            lr=_current_lr(context, epoch, -1),
            train_loss=state.loss_sum / state.num_samples,
            train_accuracy=state.correct / state.num_samples,
            images_per_second=round(state.num_samples / state.training_seconds, 2),
        )

    def test(self) -> TestResult:
        """Compute the test metrics of the weights in the model, as `ftcli evaluate` does."""
        data, dataset, classifier = self.setup.plan.recipe.data, self.setup.dataset, self.setup.classifier
        pipeline = None
        if all(isinstance(plan.stage, HeadFitStage) or plan.stage.cache != "off" for plan in self.setup.plan.stages):
            pipeline = cut_at_head(
                self.model,
                self.setup.plan.head.path,
                classifier.preprocessing,
                classifier.device,
                classifier.precision,
            )
        num_workers = choose_num_workers(data.num_workers, classifier.device, dataset)
        rehash = self.setup.start_point.rehash
        loader_config = LoaderConfig(dataset.root, data.on_corrupt_image, num_workers, rehash=rehash)
        samples, task = dataset.splits["test"], ProgressTask("test", self.reporter, self.stop.is_set)
        try:
            with open_eval_loader(classifier, pipeline, samples, loader_config, data.batch_size, task) as (
                loader,
                forward,
            ):
                outputs = predict_logits(self.model, forward, loader, task)
        except StopRequestedError:
            raise self.stop.create_error(
                f"Stopped in the test; continue with: ftcli train --resume {self.run_dir.last_checkpoint}"
            ) from None
        self.checkpointer.skipped.update(outputs.skipped)
        return TestResult(compute_loss(outputs), compute_accuracy(outputs), len(outputs.paths))

    @contextmanager
    def _open_run_dir(self) -> Iterator[None]:
        """Lock the run directory and write its first files; delete them on exit if there is nothing to resume."""
        make_dir(self.run_dir.path)
        with lock_dir(self.run_dir.path), self.stop, raise_on_oom():
            if not self.setup.start_point.is_exact_resume and self.run_dir.has_run():
                raise RecipeError(
                    f"{self.run_dir.path}: another run has started in this folder; run the command again, or set "
                    "another --out"
                )
            try:
                self.run_dir.write_initial_files(dump_recipe(self.setup.plan.recipe), run_metadata(self.setup))
                logger.info(_run_banner(self.setup))
                yield
            finally:
                self.run_dir.remove_if_empty()

    def _stage_banner(self, context: StageContext, plan: StagePlan) -> str:
        """Return the epochs of a stage and, unless the features are cached, the expected duration."""
        data, stages = context.data, self.setup.remaining_stages
        num_steps = data.train_loader.count_batches(merge_last=True)
        banner = (
            f"Stage {plan.stage.name}: {format_count(plan.stage.epochs, 'epoch')} of {format_count(num_steps, 'step')}"
        )
        if data.is_cached:
            return banner
        num_train, num_val = len(data.train_loader.samples), len(data.val_loader.samples)
        # An upper bound: the first validation includes the start of the workers.
        seconds_per_image = self.checkpointer.history[-1].seconds / num_val
        remaining_plans = stages[stages.index(plan) :]
        seconds = [estimate_seconds(other, num_train, num_val, seconds_per_image) for other in remaining_plans]
        banner += f", about {format_duration(seconds[0])}"
        if len(remaining_plans) > 1:
            banner += f", about {format_duration(sum(seconds))} for the {format_count(len(remaining_plans), 'stage')}"
        return banner


def should_stop_early(val_losses: Sequence[float], early_stopping: EarlyStopping | None) -> bool:
    """Return whether none of the last `patience` losses is lower by more than `min_delta` than the best before it."""
    if early_stopping is None:
        return False
    best_loss, epochs_since_best = math.inf, 0
    for loss in val_losses:
        if loss < best_loss - early_stopping.min_delta:
            best_loss, epochs_since_best = loss, 0
        else:
            epochs_since_best += 1
    return epochs_since_best >= early_stopping.patience


def _current_lr(context: StageContext, epoch_index: int, step: int) -> float:
    """Return the learning rate of a step; epochs, and the steps of an epoch, are counted from 0."""
    stage, steps_per_epoch = context.stage, context.data.train_loader.count_batches(merge_last=True)
    total_step = epoch_index * steps_per_epoch + step
    return lr_at_step(stage.schedule, stage.optimizer.lr, total_step, steps_per_epoch, stage.epochs)


def _next_batch(batches: Iterator[Batch], profiler: StageProfiler) -> Batch | None:
    with profiler.measure("data"):
        return next(batches, None)


def _run_banner(setup: RunSetup) -> str:
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in setup.dataset.splits.items())
    action = "Resuming run in" if setup.start_point.is_exact_resume else "Training in"
    return (
        f"{action} {setup.start_point.run_dir.path} on {setup.classifier.device}: {setup.plan.recipe.backbone.name}, "
        f"{len(setup.dataset.classes)} classes, {counts} images at {setup.plan.preprocessing.image_size} px"
    )


def _report_finished_run(start_point: StartPoint) -> TrainResult:
    """Log that a run is finished already, and return its result."""
    progress = start_point.saved_progress
    assert progress is not None  # StartPoint.is_finished
    logger.info(f"{start_point.run_dir.path} is finished; this is its result")
    test_result = None if progress["test"] is None else TestResult(**progress["test"])
    return _create_result(start_point, results_from_dict(progress), test_result, progress["skipped"])


def _create_result(
    start_point: StartPoint, stages: Sequence[StageResult], test: TestResult | None, skipped: Iterable[str]
) -> TrainResult:
    return TrainResult(
        start_point.run_dir.path,
        start_point.run_dir.best_checkpoint,
        tuple(stages),
        test,
        tuple(sorted(skipped)),
        _next_command(start_point),
        describe_bottleneck(sum((stage.times for stage in stages), StageTimes())),
    )


def _next_command(start_point: StartPoint) -> str:
    """Return the command that trains the next stage, or evaluates if there is none."""
    best_checkpoint, stage_names = start_point.run_dir.best_checkpoint, list_stage_names(start_point.recipe_file.recipe)
    remaining_names = stage_names[stage_names.index(start_point.stage_names[-1]) + 1 :]
    if remaining_names:
        return f"ftcli train --stage {remaining_names[0]} --resume {best_checkpoint}"
    return f"ftcli evaluate {best_checkpoint}"
