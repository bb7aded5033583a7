"""A training, from an order to its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ftcli.data.loading import Loader
from ftcli.errors import RecipeError
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import compute_outputs
from ftcli.models.states import put_tensors
from ftcli.recipe.loading import dump_recipe
from ftcli.results import Reporter, TestResult, TrainResult
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.runtime import choose_device, explain_memory
from ftcli.storage import hold_folder, make_folder
from ftcli.training.beginning import Beginning, Order, choose_beginning, list_stages
from ftcli.training.interruption import StopSignals
from ftcli.training.journal import revive_results
from ftcli.training.loop import Workshop, run_stage
from ftcli.training.preparation import Job, describe_job, open_loaders, prepare, tell_time


def train(order: Order, reporter: Reporter) -> TrainResult:
    """Train what an order asks for, stage after stage, each from the best weights of the one before.

    Raises FtcliError: before anything is written for an order, recipe, data or weights that cannot be used, and
    while running for what goes wrong then; what was reached is saved.
    """
    beginning = choose_beginning(order, reporter)
    device = choose_device(order.device)
    if beginning.is_finished:
        return _retell(beginning, reporter)
    job = prepare(beginning, device, reporter)
    with _open_run(job, reporter) as (shop, loaders):
        progress = job.progress
        for stage in job.stages:
            run_stage(shop, stage, progress)
            progress = None
        return _finish(job, shop, loaders.get("test"))


@contextmanager
def _open_run(job: Job, reporter: Reporter) -> Iterator[tuple[Workshop, dict[str, Loader]]]:
    folder, exact = job.beginning.folder, job.beginning.exact
    make_folder(folder.path)
    with hold_folder(folder.path), StopSignals(reporter) as stop, open_loaders(job) as loaders, explain_memory():
        if not exact and folder.holds_run():
            raise RecipeError(
                f"{folder.path}: another run has begun there in the meantime; start again, or give another --out"
            )
        try:
            folder.prepare(dump_recipe(job.plan.recipe), describe_job(job))
            reporter.say(_introduce(job))
            seed = job.plan.recipe.seed
            yield (
                Workshop(
                    job.classifier, loaders["train"], loaders["val"], job.stages, seed, job.journal, reporter, stop
                ),
                loaders,
            )
        finally:
            folder.discard_unbegun()


def _introduce(job: Job) -> str:
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in job.images.splits.items())
    verb = "Going on in" if job.beginning.exact else "Training in"
    return (
        f"{verb} {job.beginning.folder.path} on {job.classifier.device}: {job.plan.recipe.backbone.name}, "
        f"{len(job.images.classes)} classes, {counts} images at {job.plan.preprocessing.image_size} px"
    )


def _finish(job: Job, shop: Workshop, test: Loader | None) -> TrainResult:
    folder, journal, model = job.beginning.folder, job.journal, job.classifier.model
    put_tensors(model, read_checkpoint(folder.best_loss).state)
    result = None
    if test is not None:
        outputs = compute_outputs(job.classifier, test, shop.reporter, "test", shop.stop.is_set)
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
    )


def _retell(beginning: Beginning, reporter: Reporter) -> TrainResult:
    """The result of a run that has nothing left to do."""
    assert beginning.checkpoint is not None
    assert beginning.checkpoint.progress is not None
    progress, folder = beginning.checkpoint.progress, beginning.folder
    folder.check_whole(())
    reporter.say(f"{folder.path} is finished; this is its result")
    test = None if progress["test"] is None else TestResult(**progress["test"])
    return TrainResult(
        folder.path,
        folder.best_loss,
        tuple(revive_results(progress)),
        test,
        tuple(progress["skipped"]),
        _advise(beginning),
    )


def _advise(beginning: Beginning) -> str:
    """The command to type next: train the stage that follows, or evaluate."""
    best, names = beginning.folder.best_loss, list_stages(beginning.document.recipe)
    following = names[names.index(beginning.stages[-1]) + 1 :]
    if following:
        return f"ftcli train --stage {following[0]} --resume {best}"
    return f"ftcli evaluate {best}"
