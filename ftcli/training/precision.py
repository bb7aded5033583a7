"""The number format of a run: bfloat16 where a measured training step is faster with it, else float32."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ftcli.caching.measured_choices import load_choice, save_choice
from ftcli.evaluation.classifier import Classifier
from ftcli.models.fx_trace import preserve_training_mode
from ftcli.runtime import measure_seconds, resolve_precision, supports_bfloat16

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]

MIN_BFLOAT16_SPEEDUP = 1.1
"""The speedup from which bfloat16 is worth its rounding errors."""
MAX_TRIAL_STEP_SECONDS = 1.0
"""Seconds that a measured step may take; if a full batch would take longer, the step has fewer images."""


def resolve_classifier_precision(
    classifier: Classifier, model_name: str, batch_size: int, known_precisions: Mapping[str, str], save: bool = True
) -> Classifier:
    """Return the classifier with `precision: auto` resolved to float32 or bfloat16.

    A format in `known_precisions`, by device type, is reused. Otherwise, on hardware that supports bfloat16, a step
    that trains the whole model is measured in both formats, whatever the stages train, so that a resumed run computes
    in the same format. With `save` the choice is stored for this machine. The model is left unchanged.
    """
    device = classifier.device
    if classifier.precision != "auto" or device.type in known_precisions or not supports_bfloat16(device):
        return replace(classifier, precision=resolve_precision(classifier.precision, device, known_precisions))
    is_cuda = device.type == "cuda"
    benchmark_key = {
        "precision of": model_name,
        "image_size": classifier.preprocessing.image_size,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    saved_choice = load_choice(benchmark_key)
    if saved_choice in ("float32", "bfloat16"):
        return replace(classifier, precision=saved_choice)
    with _prepare_training_step(classifier, batch_size) as step:
        chosen = choose_precision(step, device)
    if save:
        save_choice(benchmark_key, chosen)
    return replace(classifier, precision=chosen)


def choose_precision(
    step: Callable[[Precision], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Precision:
    """Measure a step twice in each format and return the faster one; bfloat16 needs MIN_BFLOAT16_SPEEDUP."""
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(2):
        for precision, timings in seconds.items():
            timings.append(measure_seconds(lambda precision=precision: step(precision), device, clock))  # type: ignore[misc]
    float32_seconds, bfloat16_seconds = min(seconds["float32"]), min(seconds["bfloat16"])
    chosen: Precision = "bfloat16" if float32_seconds >= MIN_BFLOAT16_SPEEDUP * bfloat16_seconds else "float32"
    speedup = float32_seconds / bfloat16_seconds
    logger.info(f"precision: {chosen}; a step in bfloat16 is {speedup:.1f} times as fast as in float32")
    return chosen


@contextmanager
def _prepare_training_step(classifier: Classifier, batch_size: int) -> Iterator[Callable[[Precision], object]]:
    """Yield a function that runs a training step of the whole model on random images."""
    model, image_size = classifier.model, classifier.preprocessing.image_size
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)

    def run_step(precision: Precision, images: Tensor) -> None:
        logits = replace(classifier, precision=precision).compute_logits(images)
        logits.logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]

    with preserve_training_mode(model), torch.random.fork_rng(devices=[]):
        model.eval()  # costs the same, and does not update the statistics of BatchNorm
        torch.manual_seed(0)
        images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
        small_batch = images[:2]
        run_step("float32", small_batch)
        seconds = measure_seconds(lambda: run_step("float32", small_batch), classifier.device)
        images = images[: max(2, int(MAX_TRIAL_STEP_SECONDS / max(seconds, 1e-9) * len(small_batch)))]
        try:
            yield lambda precision: run_step(precision, images)
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(requires_grad[name])
                parameter.grad = None
