"""A step of a stage, tried on this machine: how long it takes and what memory it needs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftcli.evaluation.classifier import Classifier
from ftcli.evaluation.logits import ForwardFn, image_forward, suffix_forward
from ftcli.models.cut import ModelCut
from ftcli.models.freezing import list_norm_and_bias, set_train_mode
from ftcli.planning import StagePlan
from ftcli.training.optim import build_optimizer

MAX_PROFILED_STEP_SECONDS = 3.0
"""Seconds that one tried step may take; a smaller batch is tried where a whole one would take longer."""


@dataclass(frozen=True)
class StepProfile:
    """What one step and one validation pass of `batch` images took and kept. `peak` is what was held at once, beyond
    what the process had, None where a stage before had taken as much."""

    batch_size: int
    step_seconds: float
    forward_seconds: float
    activation_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class StepInputs:
    """How a stage computes: from images, or from random values of the shapes that cross its cut. `training` and
    `evaluating` look at what `draw` gives for so many images."""

    train_forward: ForwardFn
    eval_forward: ForwardFn
    random_batch: Callable[[int], tuple[Tensor, ...]]


def create_step_inputs(classifier: Classifier, cut: ModelCut | None) -> StepInputs:
    """The way through the whole network, or behind a cut."""
    if cut is not None:
        shapes = [tensor.shape for tensor in cut.boundary]
        forward_functions = suffix_forward(cut.training_suffix, classifier), suffix_forward(cut.suffix, classifier)
        return StepInputs(*forward_functions, lambda count: tuple(_random_tensor(count, shape) for shape in shapes))
    forward, image_size = image_forward(classifier), classifier.preprocessing.image_size
    return StepInputs(
        forward, forward, lambda count: (torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8),)
    )


def profile_step(
    classifier: Classifier, stage: StagePlan, step_inputs: StepInputs, batch_size: int, process_bytes: int
) -> StepProfile:
    """One step to warm up, on few images, then two whole ones, or fewer images where these would take too long.

    The freezing of the stage is applied already; `process` is what the process held before it had a network.
    """
    model = classifier.model
    optimizer = build_optimizer(model, stage.stage.optimizer, stage.lr_mults, list_norm_and_bias(model))

    def step(values: tuple[Tensor, ...]) -> None:
        logits = step_inputs.train_forward(values)
        labels = torch.arange(len(logits), device=classifier.device) % len(classifier.classes)
        loss = functional.cross_entropy(logits, labels, label_smoothing=stage.stage.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if stage.stage.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], stage.stage.clip_grad_norm)
        optimizer.step()

    set_train_mode(model, stage.frozen_names)
    warmup_size = min(batch_size, 4)
    step(step_inputs.random_batch(warmup_size))
    step_seconds = measure_seconds(lambda: step(step_inputs.random_batch(warmup_size)), classifier.device)
    profiled_size = choose_batch_size(batch_size, warmup_size, step_seconds)
    values = step_inputs.random_batch(profiled_size)
    memory_counter, peak_before = ActivationMemoryCounter(model), measure_peak_bytes(classifier.device)
    with memory_counter:
        step(values)
    step_seconds = min(measure_seconds(lambda: step(values), classifier.device) for _ in range(2))
    optimizer_bytes = sum(list_tensor_bytes(value for state in optimizer.state.values() for value in state.values()))
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.inference_mode():
        forward_seconds = measure_seconds(lambda: step_inputs.eval_forward(values), classifier.device)
    peak_bytes = measure_peak_bytes(classifier.device)
    return StepProfile(
        profiled_size,
        step_seconds,
        forward_seconds,
        memory_counter.num_bytes,
        optimizer_bytes,
        peak_bytes - process_bytes if peak_bytes > peak_before else None,
    )


def choose_batch_size(batch_size: int, trial_size: int, seconds: float) -> int:
    """How many images a tried step has, when a step of `few` takes so many seconds: the whole batch, or what LIMIT
    allows, and at least two, which BatchNorm needs."""
    return max(2, min(batch_size, int(MAX_PROFILED_STEP_SECONDS / max(seconds, 1e-9) * trial_size)))


class ActivationMemoryCounter(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for the backward pass, each memory once, a network's own apart."""

    def __init__(self, model: nn.Module) -> None:
        self.num_bytes = 0
        self._counted_storages = {
            tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]
        }
        super().__init__(self._count, lambda packed: packed)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._counted_storages:
            self._counted_storages.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor.detach()  # the tensor itself would be a circle that keeps the memory


def _random_tensor(count: int, shape: tuple[int, ...]) -> Tensor:
    values = torch.rand((count, *shape))
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def list_tensor_bytes(values: Iterable[object]) -> list[int]:
    """The bytes of each tensor among some values."""
    return [value.numel() * value.element_size() for value in values if isinstance(value, Tensor)]


def measure_seconds(function: Callable[[], object], device: torch.device | None = None) -> float:
    """How long some work takes, on a GPU until it is done there."""
    start_time = time.perf_counter()
    function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_time


def measure_peak_bytes(device: torch.device) -> int:
    """The most bytes held so far: by tensors on a GPU, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
