"""A training, from an order to its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch._dynamo  # noqa: F401  the first optimizer would import it, which takes seconds that are no stage's

from ftcli.data.loading import share_cores
from ftcli.errors import RecipeError
from ftcli.features.cache import Source
from ftcli.inference.inputs import Reading, open_feed, open_inputs
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import Outputs, compute_outputs
from ftcli.models.states import put_tensors
from ftcli.planning import SolvedPlan
from ftcli.recipe.loading import dump_recipe
from ftcli.recipe.schema import SolvedStage
from ftcli.results import Reporter, StageResult, StageTimes, TestResult, TrainResult
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runtime import choose_device, explain_memory
from ftcli.storage import hold_folder, make_folder
from ftcli.training.acceleration import settle_job
from ftcli.training.beginning import Beginning, Order, choose_beginning, list_stages
from ftcli.training.interruption import StopSignals
from ftcli.training.journal import revive_results
from ftcli.training.ledger import name_bottleneck
from ftcli.training.loop import run_stage
from ftcli.training.preparation import Job, describe_job, prepare, tell_time
from ftcli.training.solving import solve_stage
from ftcli.training.workshop import Workshop


def train(order: Order, reporter: Reporter) -> TrainResult:
    """Train what an order asks for, stage after stage, each from the best weights of the one before.

    Raises FtcliError: before anything is written for an order, recipe, data or weights that cannot be used, and
    while running for what goes wrong then; what was reached is saved.
    """
    beginning = replace(choose_beginning(order, reporter), verify=order.verify)
    device = choose_device(order.device)
    if beginning.is_finished:
        return _retell(beginning, reporter)
    job = settle_job(prepare(beginning, device, reporter), reporter)
    with _open_run(job, reporter) as shop:
        progress = job.progress
        for stage in job.stages:
            if isinstance(stage, SolvedPlan):
                solve_stage(shop, stage, progress)
            else:
                run_stage(shop, stage, progress)
            job.journal.folder.write_curves(job.journal.rows)
            progress = None
        return _finish(job, shop)


@contextmanager
def _open_run(job: Job, reporter: Reporter) -> Iterator[Workshop]:
    folder, exact = job.beginning.folder, job.beginning.exact
    make_folder(folder.path)
    with hold_folder(folder.path), StopSignals(reporter) as stop, explain_memory():
        if not exact and folder.holds_run():
            raise RecipeError(
                f"{folder.path}: another run has begun there in the meantime; start again, or give another --out"
            )
        try:
            folder.prepare(dump_recipe(job.plan.recipe), describe_job(job))
            reporter.say(_introduce(job))
            yield Workshop(job, reporter, stop)
        finally:
            folder.discard_unbegun()


def _introduce(job: Job) -> str:
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in job.images.splits.items())
    verb = "Going on in" if job.beginning.exact else "Training in"
    return (
        f"{verb} {job.beginning.folder.path} on {job.classifier.device}: {job.plan.recipe.backbone.name}, "
        f"{len(job.images.classes)} classes, {counts} images at {job.plan.preprocessing.image_size} px"
    )


def _finish(job: Job, shop: Workshop) -> TrainResult:
    folder, journal, model = job.beginning.folder, job.journal, job.classifier.model
    put_tensors(model, read_checkpoint(folder.best_loss).state)
    result = None
    if "test" in job.images.splits:
        outputs = _run_test(job, shop)
        if outputs is None:
            raise shop.stop.error(f"Stopped in the test; go on with: ftcli train --resume {folder.last}")
        journal.skipped.update(outputs.skipped)
        result = TestResult(measure_loss(outputs), measure_accuracy(outputs), len(outputs.paths))
    journal.save_finished(model, result)
    folder.write_manifest(describe_job(job, tell_time()))
    return TrainResult(
        folder.path,
        folder.best_loss,
        tuple(journal.results),
        result,
        tuple(sorted(journal.skipped)),
        _advise(job.beginning),
        _name_bottleneck(journal.results),
    )


def _run_test(job: Job, shop: Workshop) -> Outputs | None:
    """The outputs of the best weights for the test images, as `evaluate` computes them; None after a signal."""
    data, images, classifier = job.plan.recipe.data, job.images, job.classifier
    inputs = None
    if all(isinstance(plan.stage, SolvedStage) or plan.stage.cache != "off" for plan in job.plan.stages):
        head = job.plan.head.path
        inputs = open_inputs(classifier.model, head, classifier.preprocessing, classifier.device, classifier.precision)
    num_workers = share_cores(data.num_workers, classifier.device, images)
    source = Source(images.root, data.on_corrupt_image, num_workers, job.beginning.verify)
    reading, stop = Reading(source, data.batch_size), shop.stop.is_set
    with open_feed(classifier, inputs, images.splits["test"], reading, shop.reporter, "test", stop=stop) as opened:
        if opened is None:
            return None
        feed, look = opened
        return compute_outputs(classifier.model, look, feed, shop.reporter, "test", stop)


def _retell(beginning: Beginning, reporter: Reporter) -> TrainResult:
    """The result of a run that has nothing left to do."""
    assert beginning.checkpoint is not None
    assert beginning.checkpoint.progress is not None
    progress, folder = beginning.checkpoint.progress, beginning.folder
    folder.check_whole(())
    reporter.say(f"{folder.path} is finished; this is its result")
    test = None if progress["test"] is None else TestResult(**progress["test"])
    results = revive_results(progress)
    return TrainResult(
        folder.path,
        folder.best_loss,
        tuple(results),
        test,
        tuple(progress["skipped"]),
        _advise(beginning),
        _name_bottleneck(results),
    )


def _name_bottleneck(results: Sequence[StageResult]) -> str | None:
    return name_bottleneck(sum((stage.times for stage in results), StageTimes()))


def _advise(beginning: Beginning) -> str:
    """The command to type next: train the stage that follows, or evaluate."""
    best, names = beginning.folder.best_loss, list_stages(beginning.document.recipe)
    following = names[names.index(beginning.stages[-1]) + 1 :]
    if following:
        return f"ftcli train --stage {following[0]} --resume {best}"
    return f"ftcli evaluate {best}"
