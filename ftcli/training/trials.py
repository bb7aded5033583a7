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

from ftcli.inference.classifier import Classifier
from ftcli.inference.outputs import Look, look_from, look_through
from ftcli.models.cut import Cut
from ftcli.models.freezing import list_norm_and_bias, set_modes
from ftcli.planning import StagePlan
from ftcli.training.optim import build_optimizer

LIMIT = 3.0
"""Seconds that one tried step may take; a smaller batch is tried where a whole one would take longer."""


@dataclass(frozen=True)
class Trial:
    """What one step and one validation pass of `batch` images took and kept. `peak` is what was held at once, beyond
    what the process had, None where a stage before had taken as much."""

    batch: int
    step: float
    forward: float
    activations: int
    optimizer: int
    peak: int | None


@dataclass(frozen=True)
class Way:
    """How a stage computes: from images, or from random values of the shapes that cross its cut. `training` and
    `evaluating` look at what `draw` gives for so many images."""

    training: Look
    evaluating: Look
    draw: Callable[[int], tuple[Tensor, ...]]


def choose_way(classifier: Classifier, cut: Cut | None) -> Way:
    """The way through the whole network, or behind a cut."""
    if cut is not None:
        shapes = [crossing.shape for crossing in cut.crossing]
        behind = look_through(cut.training_suffix, classifier), look_through(cut.suffix, classifier)
        return Way(*behind, lambda count: tuple(_draw_values(count, shape) for shape in shapes))
    look, size = look_from(classifier), classifier.preprocessing.image_size
    return Way(look, look, lambda count: (torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),))


def try_stage(classifier: Classifier, stage: StagePlan, way: Way, batch: int, process: int) -> Trial:
    """One step to warm up, on few images, then two whole ones, or fewer images where these would take too long.

    The freezing of the stage is applied already; `process` is what the process held before it had a network.
    """
    model = classifier.model
    optimizer = build_optimizer(model, stage.stage.optimizer, stage.rates, list_norm_and_bias(model))

    def step(values: tuple[Tensor, ...]) -> None:
        logits = way.training(values)
        labels = torch.arange(len(logits), device=classifier.device) % len(classifier.classes)
        loss = functional.cross_entropy(logits, labels, label_smoothing=stage.stage.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if stage.stage.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], stage.stage.clip_grad_norm)
        optimizer.step()

    set_modes(model, stage.freezing)
    few = min(batch, 4)
    step(way.draw(few))
    seconds = measure_seconds(lambda: step(way.draw(few)), classifier.device)
    tried = choose_batch(batch, few, seconds)
    values = way.draw(tried)
    ledger, before = Ledger(model), measure_peak(classifier.device)
    with ledger:
        step(values)
    seconds = min(measure_seconds(lambda: step(values), classifier.device) for _ in range(2))
    kept = sum(list_sizes(value for state in optimizer.state.values() for value in state.values()))
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.inference_mode():
        forward = measure_seconds(lambda: way.evaluating(values), classifier.device)
    peak = measure_peak(classifier.device)
    return Trial(tried, seconds, forward, ledger.held, kept, peak - process if peak > before else None)


def choose_batch(batch: int, few: int, seconds: float) -> int:
    """How many images a tried step has, when a step of `few` takes so many seconds: the whole batch, or what LIMIT
    allows, and at least two, which BatchNorm needs."""
    return max(2, min(batch, int(LIMIT / max(seconds, 1e-9) * few)))


class Ledger(torch.autograd.graph.saved_tensors_hooks):
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


def _draw_values(count: int, shape: tuple[int, ...]) -> Tensor:
    values = torch.rand((count, *shape))
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def list_sizes(values: Iterable[object]) -> list[int]:
    """The bytes of each tensor among some values."""
    return [value.numel() * value.element_size() for value in values if isinstance(value, Tensor)]


def measure_seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """How long some work takes, on a GPU until it is done there."""
    began = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure_peak(device: torch.device) -> int:
    """The most bytes held so far: by tensors on a GPU, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
