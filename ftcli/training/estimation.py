"""What a training will cost on this machine: real steps are tried and scaled to the recipe."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.data.loading import Loader, choose_workers
from ftcli.data.sources import ImageSet
from ftcli.data.transforms import build_train_transform
from ftcli.inference.classifier import Classifier
from ftcli.models.freezing import apply_freezing, list_norm_and_bias, set_modes
from ftcli.planning import Plan, StagePlan, build_model, find_classes, gather_images, plan_recipe, put_head
from ftcli.recipe.loading import Document
from ftcli.results import MemoryParts, Progress, Reporter, StageEstimate
from ftcli.runtime import choose_device, count_cores, explain_memory
from ftcli.training.optim import build_optimizer

LIMIT = 3.0
"""Seconds that one tried step may take; a smaller batch is tried where a whole one would take longer."""
READ = 16
"""Images that are read to learn how long that takes."""
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
class _Trial:
    """What one step and one validation pass of `batch` images took and kept. `peak` is what was held at once, beyond
    what the process had, None where a stage before had taken as much."""

    batch: int
    step: float
    forward: float
    activations: int
    optimizer: int
    peak: int | None


def estimate_training(document: Document, reporter: Reporter) -> tuple[StageEstimate, ...]:
    """Time and memory of each stage of a recipe, from steps on random pixels with random weights.

    Memory is counted: parameters, gradients, the optimizer's state, what the forward pass keeps, and what the process
    holds already; what a step takes beyond that for a moment is observed. Nothing is downloaded, fetched or written.
    Raises RecipeError and DataError for a recipe or data that do not fit, RunError if memory runs out.
    """
    plan = plan_recipe(document)
    classes = find_classes(document, reporter)
    material = _survey(document, plan, reporter)
    device = choose_device("auto")
    process = _measure_peak(device)
    with torch.random.fork_rng(devices=[]), explain_memory():
        model = build_model(plan)
        put_head(model, plan, len(classes))
        classifier = Classifier.place(model, plan.preprocessing, classes, device, plan.recipe.precision)
        estimates = []
        for number, stage in enumerate(plan.stages, 1):
            trial = _try_stage(classifier, plan, stage, material.batch, process)
            estimates.append(_scale(classifier.model, plan, stage, trial, material, process, device))
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
    with Loader(chosen, images.root, transform, len(chosen), 0, data.on_bad_image) as loader:
        return _time(lambda: [None for _ in loader.batches(draw=(plan.recipe.seed, "reading"))]) / len(chosen)


def _try_stage(classifier: Classifier, plan: Plan, stage: StagePlan, batch: int, process: int) -> _Trial:
    """One step to warm up, on few images, then two whole ones, or fewer images where these would take too long."""
    model = classifier.model
    apply_freezing(model, stage.freezing)
    optimizer = build_optimizer(model, stage.stage.optimizer, stage.rates, list_norm_and_bias(model))

    def step(images: Tensor) -> None:
        labels = torch.arange(len(images), device=classifier.device) % len(classifier.classes)
        logits = classifier.compute_logits(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=stage.stage.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if stage.stage.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], stage.stage.clip_grad_norm)
        optimizer.step()

    set_modes(model, stage.freezing)
    few = _draw_images(plan, min(batch, 4))
    step(few)
    tried = choose_batch(batch, len(few), _time(lambda: step(few), classifier.device))
    images = _draw_images(plan, tried)
    ledger, before = _Ledger(model), _measure_peak(classifier.device)
    with ledger:
        step(images)
    seconds = min(_time(lambda: step(images), classifier.device) for _ in range(2))
    kept = sum(_sizes(value for state in optimizer.state.values() for value in state.values()))
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.inference_mode():
        forward = _time(lambda: classifier.compute_logits(images), classifier.device)
    peak = _measure_peak(classifier.device)
    return _Trial(tried, seconds, forward, ledger.held, kept, peak - process if peak > before else None)


def choose_batch(batch: int, few: int, seconds: float) -> int:
    """How many images a tried step has, when a step of `few` takes so many seconds: the whole batch, or what LIMIT
    allows, and at least two, which BatchNorm needs."""
    return max(2, min(batch, int(LIMIT / max(seconds, 1e-9) * few)))


def _scale(
    model: nn.Module,
    plan: Plan,
    stage: StagePlan,
    trial: _Trial,
    material: _Material,
    process: int,
    device: torch.device,
) -> StageEstimate:
    batch, epochs = material.batch, stage.stage.epochs
    share = batch / trial.batch
    step, forward = trial.step * share, trial.forward / trial.batch
    training = _overlap(step / batch, material.reading, plan, device) * material.train
    # Each stage is validated once before its first step.
    validation = _overlap(forward, material.reading, plan, device) * material.val
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = sum(_sizes([*model.parameters(), *model.buffers()]))
    gradients = sum(_sizes(parameters))
    working = max(0, (trial.peak or 0) - held - gradients - trial.optimizer - trial.activations)
    memory = MemoryParts(
        parameters=held,
        gradients=gradients,
        optimizer=trial.optimizer,
        activations=round(trial.activations * share),
        working=round(working * share),
        process=process if device.type == "cpu" else 0,
    )
    return StageEstimate(
        stage=stage.stage.name,
        epochs=epochs,
        images=material.train,
        validation_images=material.val,
        from_data=material.reading is not None,
        batch_size=batch,
        measured_batch=trial.batch,
        seconds_per_step=step,
        seconds_per_validation_image=forward,
        seconds_per_image_read=material.reading,
        seconds=epochs * training + (epochs + 1) * validation,
        memory=memory,
        memory_bytes=sum(memory.to_dict().values()),
    )


def _overlap(computing: float, reading: float | None, plan: Plan, device: torch.device) -> float:
    """Seconds an image when it is read and computed with. On the CPU both share the cores; elsewhere the slower one
    counts. Without workers they take turns."""
    workers = choose_workers(plan.recipe.data.workers)
    if reading is None:
        return computing
    if not workers:
        return computing + reading
    if device.type == "cpu":
        return computing + reading / min(workers, count_cores())
    return max(computing, reading / workers)


class _Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for the backward pass, each memory once, a network's own apart."""

    def __init__(self, model: nn.Module) -> None:
        self.held = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        super().__init__(self._note, lambda kept: kept)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.held += storage.nbytes()
        return tensor.detach()  # the tensor itself would be a circle that keeps the memory


def _draw_images(plan: Plan, count: int) -> Tensor:
    size = plan.preprocessing.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def _sizes(values: Iterable[object]) -> list[int]:
    return [value.numel() * value.element_size() for value in values if isinstance(value, Tensor)]


def _time(work: Callable[[], object], device: torch.device | None = None) -> float:
    began = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _measure_peak(device: torch.device) -> int:
    """The most bytes held so far: by tensors on a GPU, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
