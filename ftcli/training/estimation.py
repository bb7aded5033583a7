"""What a training will cost on this machine: real steps are tried and scaled to the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftcli.caching.places import can_hold
from ftcli.data.loading import Loader, choose_workers
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import ImageSet
from ftcli.data.transforms import build_train_transform
from ftcli.features.cache import FeatureCache
from ftcli.features.solving import Lesson, solve_head
from ftcli.inference.classifier import Classifier
from ftcli.models.cut import Cut, find_cut
from ftcli.models.freezing import apply_freezing
from ftcli.planning import (
    AnyPlan,
    Plan,
    SolvedPlan,
    StagePlan,
    build_model,
    find_classes,
    gather_images,
    plan_recipe,
    put_head,
)
from ftcli.recipe.loading import Document
from ftcli.results import MemoryParts, Progress, Reporter, StageEstimate
from ftcli.runtime import choose_device, count_cores, explain_memory
from ftcli.training.acceleration import settle_classifier
from ftcli.training.keeping import SMALL, count_looks, count_views, weigh_ways
from ftcli.training.trials import choose_way, list_sizes, measure_peak, measure_seconds, try_stage

READ = 16
"""Images that are read to learn how long that takes."""
FEW, TRIED = 16, 1000
"""Images that a forward pass is tried on alone, and from which a head is solved to learn how long that takes."""
UNKNOWN = 1000
"""Training images that figures are told for where there are no data."""


@dataclass(frozen=True)
class _Material:
    """How many images an epoch trains on and validates, how many a step has, and the seconds that reading one takes,
    None if unknown."""

    train: int
    val: int
    batch: int
    reading: float | None


@dataclass(frozen=True)
class _Bench:
    """What all stages are estimated with; `process` is what the process held before it had a network, in bytes."""

    plan: Plan
    classifier: Classifier
    material: _Material
    process: int

    def overlap(self, computing: float) -> float:
        """Seconds an image when it is read and computed with. On the CPU both share the cores; elsewhere the slower one
        counts. Without workers they take turns."""
        num_workers, reading = choose_workers(self.plan.recipe.data.num_workers), self.material.reading
        if reading is None:
            return computing
        if not num_workers:
            return computing + reading
        if self.classifier.device.type == "cpu":
            return computing + reading / min(num_workers, count_cores())
        return max(computing, reading / num_workers)


@dataclass(frozen=True)
class _Frozen:
    """The frozen part where the network is cut behind it: the bytes that are kept of it on the disk, and the seconds to
    compute it once and to read that, or, where nothing is kept, to compute it in every epoch."""

    cut: Cut
    bytes: int
    seconds: float


def estimate_training(document: Document, reporter: Reporter) -> tuple[StageEstimate, ...]:
    """Time and memory of each stage of a recipe, from steps on random values with random weights.

    What is kept of a frozen part counts as computed once in each stage, as in a first run; compiling is left out.
    Memory is counted: parameters, gradients, the optimizer's state, what the forward pass keeps, and what the process
    holds already; what a step takes beyond that for a moment is observed. Nothing is downloaded, fetched or written.
    Raises RecipeError and DataError for a recipe or data that do not fit, RunError if memory runs out.
    """
    plan = plan_recipe(document)
    classes = find_classes(document, reporter)
    material = _survey(document, plan, reporter)
    device = choose_device("auto")
    process = measure_peak(device)
    with torch.random.fork_rng(devices=[]), explain_memory():
        model = build_model(plan)
        put_head(model, plan, len(classes))
        classifier = Classifier.place(model, plan.preprocessing, classes, device, plan.recipe.precision)
        classifier = settle_classifier(classifier, plan.recipe.backbone.name, material.batch, {}, reporter, keep=False)
        bench = _Bench(plan, classifier, material, process)
        estimates = []
        for number, stage in enumerate(plan.stages, 1):
            apply_freezing(model, stage.freezing)
            frozen = _foresee_frozen(bench, stage)
            estimate = _estimate_solving if isinstance(stage, SolvedPlan) else _estimate_steps
            estimates.append(estimate(bench, stage, frozen))  # type: ignore[arg-type]  # each has its kind of stage
            reporter.advance(Progress("trying stages", number, len(plan.stages)))
    return tuple(estimates)


def _survey(document: Document, plan: Plan, reporter: Reporter) -> _Material:
    """The images of a recipe, a few of which are read; for UNKNOWN ones where its folder is missing."""
    data = document.recipe.data
    if not all(Path(root).exists() for root in data.roots):
        return _Material(UNKNOWN, 0, data.batch_size, None)
    images = gather_images(document, reporter)
    train, val = len(images.splits["train"]), len(images.splits["val"])
    return _Material(train, val, min(data.batch_size, train), _time_reading(plan, images))


def _time_reading(plan: Plan, images: ImageSet) -> float:
    data, samples = plan.recipe.data, images.splits["train"]
    chosen = samples[:: max(1, len(samples) // READ)][:READ]
    transform = build_train_transform(plan.preprocessing, data.augment)
    with Loader(chosen, transform, len(chosen), ImageFiles(images.root, data.on_corrupt_image, 0)) as loader:
        return measure_seconds(lambda: [None for _ in loader.batches(draw=(plan.recipe.seed, "reading"))]) / len(chosen)


def _foresee_frozen(bench: _Bench, stage: AnyPlan) -> _Frozen | None:
    """What the frozen part of a stage will take, as `open_course` and `solve_stage` decide; None where the network
    stays whole."""
    plan, freezing, classifier = bench.plan, stage.freezing, bench.classifier
    if not freezing.parameters or (isinstance(stage, StagePlan) and stage.stage.cache == "off"):
        return None
    cut = find_cut(classifier.model, freezing.parameters, freezing.modules, plan.preprocessing.image_size)
    if cut is None or cut.whole:
        return None
    cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision)
    train, val = bench.material.train, bench.material.val
    views, looks = 1, train + val
    if isinstance(stage, StagePlan):
        views = count_views(stage.stage, build_train_transform(plan.preprocessing, plan.recipe.data.augment))
        looks = count_looks(stage.stage.epochs, train, val)
    records = views * train + val
    size = records * cache.prefix.row_bytes
    anew, once = weigh_ways(cache.prefix, looks, records, size)
    keeps = can_hold(size) and (isinstance(stage, SolvedPlan) or cache.prefix.row_bytes <= SMALL or once < anew)
    count, seconds = (records, once) if keeps else (looks, anew)
    return _Frozen(cut, size if keeps else 0, count * bench.overlap(seconds / count))


def _estimate_steps(bench: _Bench, stage: StagePlan, frozen: _Frozen | None) -> StageEstimate:
    material, epochs = bench.material, stage.stage.epochs
    way = choose_way(bench.classifier, frozen.cut if frozen else None)
    trial = try_stage(bench.classifier, stage, way, material.batch, bench.process)
    share = material.batch / trial.batch
    step, forward = trial.step * share, trial.forward / trial.batch
    training, validation = step / material.batch, forward
    if frozen is None:
        training, validation = bench.overlap(training), bench.overlap(validation)
    model = bench.classifier.model
    held = sum(list_sizes([*model.parameters(), *model.buffers()]))
    gradients = sum(list_sizes(p for p in model.parameters() if p.requires_grad))
    memory = MemoryParts(
        parameters=held,
        gradients=gradients,
        optimizer=trial.optimizer,
        activations=round(trial.activations * share),
        working=round(max(0, (trial.peak or 0) - held - gradients - trial.optimizer - trial.activations) * share),
        process=bench.process if bench.classifier.device.type == "cpu" else 0,
    )
    # Each stage is validated once before its first step.
    alone = epochs * training * material.train + (epochs + 1) * validation * material.val
    return _sum_up(
        bench,
        stage,
        frozen,
        memory,
        epochs=epochs,
        measured_batch=trial.batch,
        seconds_per_step=step,
        seconds_per_validation_image=forward,
        seconds=alone + (frozen.seconds if frozen else 0.0),
    )


def _estimate_solving(bench: _Bench, stage: SolvedPlan, frozen: _Frozen | None) -> StageEstimate:
    material, model = bench.material, bench.classifier.model
    way = choose_way(bench.classifier, frozen.cut if frozen else None)
    few = way.draw(min(material.batch, FEW))
    model.eval()
    with torch.inference_mode():
        way.evaluating(few)
        forward = measure_seconds(lambda: way.evaluating(few), bench.classifier.device) / min(material.batch, FEW)
    width, images = bench.plan.head.in_features, min(material.train, TRIED)
    generator = np.random.default_rng(0)
    labels = np.arange(images) % len(bench.classifier.classes)
    values = (
        generator.normal(size=(images, width)) + generator.normal(size=(len(bench.classifier.classes), width))[labels]
    )
    lesson = Lesson(values, labels, np.ones(images), None, len(bench.classifier.classes))
    solving = measure_seconds(lambda: solve_head(lesson, 0, "")) * material.train / images
    memory = MemoryParts(
        parameters=sum(list_sizes([*model.parameters(), *model.buffers()])),
        gradients=0,
        optimizer=0,
        activations=0,
        working=3 * 8 * width * material.train,  # float64: the values, and standardised those of a fold and its rest
        process=bench.process if bench.classifier.device.type == "cpu" else 0,
    )
    looked = (forward if frozen else bench.overlap(forward)) * (material.train + material.val)
    return _sum_up(
        bench,
        stage,
        frozen,
        memory,
        epochs=1,
        measured_batch=material.batch,
        seconds_per_step=None,
        seconds_per_validation_image=forward,
        seconds=looked + solving + (frozen.seconds if frozen else 0.0),
    )


def _sum_up(
    bench: _Bench, stage: AnyPlan, frozen: _Frozen | None, memory: MemoryParts, **figures: Any
) -> StageEstimate:
    material = bench.material
    return StageEstimate(
        stage=stage.stage.name,
        images=material.train,
        validation_images=material.val,
        from_data=material.reading is not None,
        batch_size=material.batch,
        seconds_per_image_read=material.reading,
        kept_bytes=frozen.bytes if frozen else 0,
        seconds_frozen=frozen.seconds if frozen else 0.0,
        memory=memory,
        memory_bytes=sum(memory.to_dict().values()),
        **figures,
    )
