"""What makes a training faster on the machine that it runs on: the number format, and compiled steps."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ftcli.caching.benchmark_results import load_choice, save_choice
from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.classifier import Classifier
from ftcli.features.pipeline import ForwardFn
from ftcli.models.fx_trace import preserve_training_mode
from ftcli.results import Reporter, format_duration
from ftcli.runtime import measure_seconds, resolve_precision, supports_bfloat16
from ftcli.training.setup import RunSetup

Precision = Literal["float32", "bfloat16"]
Clock = Callable[[], float]

MIN_BFLOAT16_SPEEDUP = 1.1
"""How many times as fast bfloat16 must be to be worth its rounding."""
MAX_TRIAL_STEP_SECONDS = 1.0
"""Seconds that a step to compare formats by may take; it has fewer images where a whole batch would take longer."""


def resolve_classifier_precision(
    classifier: Classifier,
    model_name: str,
    batch_size: int,
    known_precisions: Mapping[str, str],
    reporter: Reporter,
    save: bool = True,
) -> Classifier:
    """The classifier with its `precision` settled, where it is auto; `network` is what its model is called.

    What was `found` before, by the kind of device, holds. Otherwise, on hardware that computes in bfloat16 by itself,
    a step that trains the whole network is tried in both formats, whatever the stages train, so that a run that carries
    on from another computes alike. The choice is said, and with `keep` kept for this machine; elsewhere it is float32.
    The network is left as it was.
    """
    device = classifier.device
    if classifier.precision != "auto" or device.type in known_precisions or not supports_bfloat16(device):
        return replace(classifier, precision=resolve_precision(classifier.precision, device, known_precisions))
    benchmark_key = {
        "precision of": model_name,
        "image_size": classifier.preprocessing.image_size,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    saved_choice = load_choice(benchmark_key)
    if saved_choice in ("float32", "bfloat16"):
        return replace(classifier, precision=saved_choice)
    with _prepare_training_step(classifier, batch_size) as step:
        chosen = choose_precision(step, device, reporter)
    if save:
        save_choice(benchmark_key, chosen)
    return replace(classifier, precision=chosen)


def resolve_run_precision(setup: RunSetup, reporter: Reporter) -> RunSetup:
    """A job whose classifier's precision is settled, where its recipe leaves it open, as in the checkpoint that it goes
    on from. Its own checkpoints will carry what it came to.

    Raises RecipeError for a recipe that asks to compile on a machine that cannot.
    """
    recipe, checkpoint = setup.plan.recipe, setup.start_point.checkpoint
    if recipe.compile:
        check_compiler(setup.start_point.recipe_file.locate("compile"), setup.classifier.device)
    known_precisions = checkpoint.precisions if checkpoint else {}
    classifier = resolve_classifier_precision(
        setup.classifier, recipe.backbone.name, recipe.data.batch_size, known_precisions, reporter
    )
    if recipe.precision == "auto":
        precisions = {**known_precisions, classifier.device.type: classifier.precision}
        setup.checkpointer.checkpoint_template = replace(setup.checkpointer.checkpoint_template, precisions=precisions)
    return replace(setup, classifier=classifier)


def choose_precision(
    step: Callable[[Precision], object], device: torch.device, reporter: Reporter, clock: Clock = time.perf_counter
) -> Precision:
    """bfloat16 where a step in it is at least GAIN times as fast as in float32, each tried twice; else float32. Says
    what was chosen, and why."""
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(2):
        for precision, timings in seconds.items():
            timings.append(measure_seconds(lambda precision=precision: step(precision), device, clock))  # type: ignore[misc]
    float32_seconds, bfloat16_seconds = min(seconds["float32"]), min(seconds["bfloat16"])
    chosen: Precision = "bfloat16" if float32_seconds >= MIN_BFLOAT16_SPEEDUP * bfloat16_seconds else "float32"
    speedup_text = f"{float32_seconds / bfloat16_seconds:.1f} times as fast as in float32"
    reporter.info(f"precision: {chosen}, for a step in bfloat16 is {speedup_text} here")
    return chosen


@contextmanager
def _prepare_training_step(classifier: Classifier, batch_size: int) -> Iterator[Callable[[Precision], object]]:
    """A step on random pixels that trains the whole network."""
    model, image_size = classifier.model, classifier.preprocessing.image_size
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)

    def run_step(precision: Precision, images: Tensor) -> None:
        logits = replace(classifier, precision=precision).compute_logits(images)
        logits.logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]

    with preserve_training_mode(model), torch.random.fork_rng(devices=[]):
        model.eval()  # costs the same, and leaves the statistics of BatchNorm alone
        torch.manual_seed(0)
        images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
        small_batch = images[:2]
        run_step("float32", small_batch)
        seconds = measure_seconds(lambda: run_step("float32", small_batch), classifier.device, time.perf_counter)
        images = images[: max(2, int(MAX_TRIAL_STEP_SECONDS / max(seconds, 1e-9) * len(small_batch)))]
        try:
            yield lambda precision: run_step(precision, images)
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(requires_grad[name])
                parameter.grad = None


def check_compiler(location: str, device: torch.device) -> None:
    """Raise RecipeError that begins with `where`, the place of `compile`, unless this machine can compile."""
    try:
        with _silence_compiler_warnings():
            torch.compile(torch.sin)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise RecipeError(
            f"{location}: true needs what compiles C++ (a GPU: Triton), and here it fails: {_first_line(error)}; install "
            "g++ and the headers of Python, or set compile: false"
        ) from error


def compile_forward(
    forward: ForwardFn,
    example_inputs: tuple[Tensor, ...],
    model: nn.Module,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
) -> ForwardFn:
    """A look that computes by compiled code what `look` does, for batches of the shape of `values`; others, such as the
    last of an epoch, go through `look` itself, so that the bits of a batch depend on nothing that came before.

    It is compiled for the modes that the layers of `model` are in, and for gradients. The tensors of `model` and the
    random numbers are left as they were, its gradients are cleared. Says what compiling took, and what a step, forward
    and backward, takes with and without it. Raises RunError for what cannot be compiled.
    """
    device = next(model.parameters()).device

    def step(forward_fn: ForwardFn) -> None:
        forward_fn(example_inputs).logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]

    compiled: ForwardFn = torch.compile(forward, dynamic=False)
    with _preserve_buffers_and_rng(model):
        step(forward)
        eager_seconds = min(measure_seconds(lambda: step(forward), device, clock) for _ in range(2))
        try:
            with _silence_compiler_warnings():
                compile_seconds = measure_seconds(lambda: step(compiled), device, clock)
        except RuntimeError as error:
            raise RunError(
                f"compile: true: the steps of this network cannot be compiled: {_first_line(error)}; set compile: false"
            ) from error
        compiled_seconds = min(measure_seconds(lambda: step(compiled), device, clock) for _ in range(2))
    reporter.info(
        f"compile: took {format_duration(compile_seconds)}; a step takes {compiled_seconds:.3g} s, {eager_seconds:.3g} s before"
    )
    shapes = [value.shape for value in example_inputs]

    def compiled_forward(inputs: tuple[Tensor, ...]) -> Tensor:
        with _silence_compiler_warnings():
            return (compiled if [value.shape for value in inputs] == shapes else forward)(inputs)

    return compiled_forward


@contextmanager
def _silence_compiler_warnings() -> Iterator[None]:
    """PyTorch's compiler warns of its own ways and of CUDA's tools, which a CPU needs none of."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _preserve_buffers_and_rng(model: nn.Module) -> Iterator[None]:
    """Leave buffers, such as the statistics of BatchNorm, and random numbers as they were, and no gradients."""
    saved_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(saved_buffers[name])
        for parameter in model.parameters():
            parameter.grad = None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
