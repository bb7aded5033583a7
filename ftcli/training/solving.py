"""A stage whose head is solved for, from what the frozen backbone gives for the images as evaluation sees them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ftcli.caching.places import can_hold
from ftcli.data.batches import Feed
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.errors import RunError
from ftcli.features.cache import FeatureCache, NoRoom, Sight, Source
from ftcli.features.feeds import ComputedFeed
from ftcli.features.probing import check_codes
from ftcli.features.solving import Lesson, Solution, solve_head
from ftcli.inference.metrics import measure_accuracy, measure_loss
from ftcli.inference.outputs import Look, Outputs, compute_outputs, look_from, look_through
from ftcli.models.cut import find_cut
from ftcli.models.freezing import apply_freezing, list_frozen_tensors
from ftcli.planning import SolvedPlan
from ftcli.results import EpochRow, StageResult, tell_count
from ftcli.training.journal import StageState
from ftcli.training.ledger import Ledger
from ftcli.training.preparation import find_files
from ftcli.training.proof import digest_tensors
from ftcli.training.reading import Reading, answer, find_layer, watch
from ftcli.training.workshop import Workshop, end_stage, save_and_stop

_Progress = tuple[torch.optim.Optimizer, StageState, Ledger]


def solve_stage(shop: Workshop, plan: SolvedPlan, resumed: Mapping[str, Any] | None) -> StageResult:
    """Solve the head of one stage and leave its best weights in the model.

    Epoch 0 is the measurement before, epoch 1 the solved head. `resumed` is the progress in a last.pt of this stage:
    what it lacks is done again, with the same result. Raises DataError for images that no head can be chosen from,
    RecipeError for a network that goes on behind its head, RunError for values that are not finite and for a frozen
    tensor that moved, Interrupted after a signal, when everything is saved.
    """
    stage, model = plan.stage, shop.model
    state = None if resumed is None else StageState(**resumed["state"])
    ledger = Ledger(shop.job.classifier.device, state.times if state else None)
    apply_freezing(model, plan.freezing)
    where = f"stage {stage.name}, fit"
    layer = find_layer(shop.job.classifier, shop.job.plan.head.path, where)
    optimizer = torch.optim.SGD(layer.parameters())  # checkpoints hold one; this never takes a step
    if state is None:
        state = StageState(stage.name, digest_tensors(list_frozen_tensors(model, plan.freezing)))
    if state.epoch < 1:
        _check_samples(shop, plan)
        with ledger.measure("frozen"), _open_feeds(shop, plan) as feeds:
            splits = None if feeds is None else _read_splits(shop, plan, layer, feeds)
        if splits is None:
            save_and_stop(shop, optimizer, state, ledger, "the computing of its frozen part")
        _solve(shop, plan, layer, splits, (optimizer, state, ledger))
    return end_stage(shop, plan, optimizer, state, ledger)


def _check_samples(shop: Workshop, plan: SolvedPlan) -> None:
    """Raise DataError for classes too small for cross-validation, before anything is computed."""
    samples = shop.job.images.splits["train"]
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    where = f"stage {plan.stage.name}, fit"
    check_codes(labels, np.full(len(labels), "train"), shop.job.images.classes, where, _name_groups(samples))


def _name_groups(samples: Sequence[Sample]) -> NDArray[np.str_] | None:
    if all(sample.group is None for sample in samples):
        return None
    return np.array([f"path {sample.path}" if sample.group is None else sample.group for sample in samples])


@contextmanager
def _open_feeds(shop: Workshop, plan: SolvedPlan) -> Iterator[tuple[Feed, Feed, Look] | None]:
    """Train and val as evaluation sees them, and how to look at them: what the frozen part gives, kept on the disk or,
    where there is no room, computed with the same bits on the CPU; or images, where the network cannot be cut. None if
    a signal came meanwhile."""
    job = shop.job
    classifier, data, splits = job.classifier, job.plan.recipe.data, job.images.splits
    frozen, files, transform = plan.freezing, find_files(job), classifier.transform
    cut = find_cut(shop.model, frozen.parameters, frozen.modules, job.plan.preprocessing.image_size)
    with ExitStack() as stack:
        if cut is None or cut.whole:
            loaders = (Loader(splits[split], transform, data.batch_size, files) for split in ("train", "val"))
            train, val = (stack.enter_context(loader) for loader in loaders)
            yield train, val, look_from(classifier)
            return
        look = look_through(cut.suffix, classifier)
        cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision)
        fits = can_hold(cache.prefix.row_bytes * sum(len(splits[split]) for split in ("train", "val")))
        feeds = _gather(shop, plan.stage.name, cache, files) if fits else None
        if feeds is None and shop.stop.is_set():
            yield None
            return
        if feeds is None:
            anew = [
                ComputedFeed(cache.prefix, splits[split], transform, data.batch_size, files, nullcontext)
                for split in ("train", "val")
            ]
            for feed in anew:
                stack.enter_context(feed)
            feeds = anew[0], anew[1]
        yield *feeds, look


def _gather(shop: Workshop, stage: str, cache: FeatureCache, files: ImageFiles) -> tuple[Feed, Feed] | None:
    """Train and val, kept; None if a signal came meanwhile, or what is in use leaves no room."""
    job, feeds = shop.job, list[Feed]()
    size, sight = job.plan.recipe.data.batch_size, Sight(job.classifier.transform, None)
    source = Source(files.root, files.on_corrupt_image, files.num_workers, job.beginning.verify)
    for split in ("train", "val"):
        samples, task = job.images.splits[split], f"{stage}: frozen part, {split}"
        try:
            feed = cache.gather(samples, [sight], size, source, shop.reporter, task, shop.stop.is_set)
        except NoRoom:
            shop.reporter.say(f"{task}: the cache has no room for what the network gives, so it is computed without it")
            return None
        if feed is None:
            return None
        feeds.append(feed)
    return feeds[0], feeds[1]


def _read_splits(
    shop: Workshop, plan: SolvedPlan, layer: nn.Linear, feeds: tuple[Feed, Feed, Look]
) -> tuple[Reading, Reading] | None:
    """What the layer reads for train and val; None if a signal came meanwhile."""
    materials = []
    for split, feed in zip(("train", "val"), feeds[:2], strict=True):
        with watch(layer) as (read, _):
            task = f"{plan.stage.name}: {split}"
            outputs = compute_outputs(shop.model, feeds[2], feed, shop.reporter, task, shop.stop.is_set)
        if outputs is None:
            return None
        shop.job.journal.skipped.update(outputs.skipped)
        materials.append(Reading(torch.cat(read), outputs))
    return materials[0], materials[1]


def _solve(
    shop: Workshop,
    plan: SolvedPlan,
    layer: nn.Linear,
    splits: tuple[Reading, Reading],
    progress: _Progress,
) -> None:
    """Note the start, unless that was done, and then the solved head."""
    (train, val), (_, state, ledger) = splits, progress
    if state.epoch < 0:
        row = _measure(plan, 0, val.outputs)
        _record(shop, replace(row, seconds=round(ledger.seconds, 3)), progress)
    began = time.perf_counter()
    by_path = {sample.path: sample for sample in shop.job.images.splits["train"]}
    samples = [by_path[path] for path in train.outputs.paths]
    with ledger.measure("solving"):
        solution = _find(shop, plan, train, samples)
        with torch.no_grad():
            layer.weight.copy_(solution.weight)
            layer.bias.copy_(solution.bias)
    with ledger.measure("validation"):
        size, classifier = shop.job.plan.recipe.data.batch_size, shop.job.classifier
        after = answer(classifier, layer, train, size)
        row = _measure(plan, 1, answer(classifier, layer, val, size))
    weights = None if shop.mean_weight is None else torch.tensor([sample.weight for sample in samples])
    row = replace(
        row,
        train_loss=_measure_weighted(after, weights, shop.mean_weight),
        train_accuracy=measure_accuracy(after),
        seconds=round(time.perf_counter() - began, 3),
    )
    shop.reporter.say(
        f"Stage {plan.stage.name}: solved with C = {solution.strength:g}, chosen in {solution.folds} folds with a "
        f"held-out loss of {solution.held_out_loss:.4f}, from {tell_count(len(samples), 'image')}"
    )
    _record(shop, row, progress)


def _find(shop: Workshop, plan: SolvedPlan, train: Reading, samples: Sequence[Sample]) -> Solution:
    lesson = Lesson(
        train.values.numpy(),
        train.outputs.labels.numpy(),
        np.array([sample.weight for sample in samples]),
        _name_groups(samples),
        len(shop.job.images.classes),
    )
    return solve_head(lesson, shop.seed, f"stage {plan.stage.name}, fit")


def _measure(plan: SolvedPlan, epoch: int, val: Outputs) -> EpochRow:
    val_loss = measure_loss(val)
    if not math.isfinite(val_loss):
        raise RunError(
            f"stage {plan.stage.name}, epoch {epoch}, validation: the loss is {val_loss}; check the weights, or set "
            "precision: float32"
        )
    return EpochRow(
        stage=plan.stage.name,
        epoch=epoch,
        train_loss=None,
        train_accuracy=None,
        val_loss=val_loss,
        val_accuracy=measure_accuracy(val),
        lr=None,
        seconds=0.0,
        images_per_second=None,
    )


def _measure_weighted(outputs: Outputs, weights: Tensor | None, mean: float | None) -> float:
    """The mean cross-entropy, each image's times its weight over the mean weight of the training images."""
    if weights is None or mean is None:
        return measure_loss(outputs)
    losses = functional.cross_entropy(outputs.logits.double(), outputs.labels, reduction="none")
    return float((losses * weights.double() / mean).mean())


def _record(shop: Workshop, row: EpochRow, progress: _Progress) -> None:
    optimizer, state, ledger = progress
    state.epoch = row.epoch
    state.times = ledger.keep()
    with ledger.measure("checkpoints"):
        best = shop.job.journal.record(row, shop.model, optimizer, state)
    shop.reporter.epoch(row, 1, best)
