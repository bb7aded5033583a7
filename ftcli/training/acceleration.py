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

from ftcli.caching.choices import keep_choice, recall_choice
from ftcli.errors import RecipeError, RunError
from ftcli.inference.classifier import Classifier
from ftcli.inference.outputs import Look
from ftcli.models.tracing import keep_modes
from ftcli.results import Reporter, tell_duration
from ftcli.runtime import has_bfloat16, settle_precision
from ftcli.training.preparation import Job

Precision = Literal["float32", "bfloat16"]
Clock = Callable[[], float]

GAIN = 1.1
"""How many times as fast bfloat16 must be to be worth its rounding."""
LIMIT = 1.0
"""Seconds that a step to compare formats by may take; it has fewer images where a whole batch would take longer."""


def settle_classifier(
    classifier: Classifier,
    network: str,
    batch_size: int,
    found: Mapping[str, str],
    reporter: Reporter,
    keep: bool = True,
) -> Classifier:
    """The classifier with its `precision` settled, where it is auto; `network` is what its model is called.

    What was `found` before, by the kind of device, holds. Otherwise, on hardware that computes in bfloat16 by itself,
    a step that trains the whole network is tried in both formats, whatever the stages train, so that a run that carries
    on from another computes alike. The choice is said, and with `keep` kept for this machine; elsewhere it is float32.
    The network is left as it was.
    """
    device = classifier.device
    if classifier.precision != "auto" or device.type in found or not has_bfloat16(device):
        return replace(classifier, precision=settle_precision(classifier.precision, device, found))
    question = {
        "precision of": network,
        "image_size": classifier.preprocessing.image_size,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    known = recall_choice(question)
    if known in ("float32", "bfloat16"):
        return replace(classifier, precision=known)
    with _prepare_step(classifier, batch_size) as step:
        chosen = choose_precision(step, device, reporter)
    if keep:
        keep_choice(question, chosen)
    return replace(classifier, precision=chosen)


def settle_job(job: Job, reporter: Reporter) -> Job:
    """A job whose classifier's precision is settled, where its recipe leaves it open, as in the checkpoint that it goes
    on from. Its own checkpoints will carry what it came to.

    Raises RecipeError for a recipe that asks to compile on a machine that cannot.
    """
    wanted, checkpoint = job.plan.recipe, job.beginning.checkpoint
    if wanted.compile:
        check_compiler(job.beginning.document.locate("compile"), job.classifier.device)
    found = checkpoint.precisions if checkpoint else {}
    classifier = settle_classifier(job.classifier, wanted.backbone.name, wanted.data.batch_size, found, reporter)
    if wanted.precision == "auto":
        carried = {**found, classifier.device.type: classifier.precision}
        job.journal.world = replace(job.journal.world, precisions=carried)
    return replace(job, classifier=classifier)


def choose_precision(
    step: Callable[[Precision], object], device: torch.device, reporter: Reporter, clock: Clock = time.perf_counter
) -> Precision:
    """bfloat16 where a step in it is at least GAIN times as fast as in float32, each tried twice; else float32. Says
    what was chosen, and why."""
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(2):
        for precision, taken in seconds.items():
            taken.append(_time(lambda precision=precision: step(precision), device, clock))  # type: ignore[misc]
    plain, short = min(seconds["float32"]), min(seconds["bfloat16"])
    chosen: Precision = "bfloat16" if plain >= GAIN * short else "float32"
    figures = f"{plain / short:.1f} times as fast as in float32"
    reporter.say(f"precision: {chosen}, for a step in bfloat16 is {figures} here")
    return chosen


@contextmanager
def _prepare_step(classifier: Classifier, batch_size: int) -> Iterator[Callable[[Precision], object]]:
    """A step on random pixels that trains the whole network."""
    model, size = classifier.model, classifier.preprocessing.image_size
    needed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)

    def take(precision: Precision, images: Tensor) -> None:
        logits = replace(classifier, precision=precision).compute_logits(images)
        logits.logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]

    with keep_modes(model), torch.random.fork_rng(devices=[]):
        model.eval()  # costs the same, and leaves the statistics of BatchNorm alone
        torch.manual_seed(0)
        images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
        few = images[:2]
        take("float32", few)
        seconds = _time(lambda: take("float32", few), classifier.device, time.perf_counter)
        images = images[: max(2, int(LIMIT / max(seconds, 1e-9) * len(few)))]
        try:
            yield lambda precision: take(precision, images)
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(needed[name])
                parameter.grad = None


def check_compiler(where: str, device: torch.device) -> None:
    """Raise RecipeError that begins with `where`, the place of `compile`, unless this machine can compile."""
    try:
        with _expect_compiler():
            torch.compile(torch.sin)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise RecipeError(
            f"{where}: true needs what compiles C++ (a GPU: Triton), and here it fails: {_first_line(error)}; install "
            "g++ and the headers of Python, or set compile: false"
        ) from error


def compile_look(
    look: Look, values: tuple[Tensor, ...], model: nn.Module, reporter: Reporter, clock: Clock = time.perf_counter
) -> Look:
    """A look that computes by compiled code what `look` does, for batches of the shape of `values`; others, such as the
    last of an epoch, go through `look` itself, so that the bits of a batch depend on nothing that came before.

    It is compiled for the modes that the layers of `model` are in, and for gradients. The tensors of `model` and the
    random numbers are left as they were, its gradients are cleared. Says what compiling took, and what a step, forward
    and backward, takes with and without it. Raises RunError for what cannot be compiled.
    """
    device = next(model.parameters()).device

    def step(way: Look) -> None:
        way(values).logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]

    compiled: Look = torch.compile(look, dynamic=False)
    with _keep_tensors(model):
        step(look)
        before = min(_time(lambda: step(look), device, clock) for _ in range(2))
        try:
            with _expect_compiler():
                took = _time(lambda: step(compiled), device, clock)
        except RuntimeError as error:
            raise RunError(
                f"compile: true: the steps of this network cannot be compiled: {_first_line(error)}; set compile: false"
            ) from error
        after = min(_time(lambda: step(compiled), device, clock) for _ in range(2))
    reporter.say(f"compile: took {tell_duration(took)}; a step takes {after:.3g} s, {before:.3g} s before")
    shapes = [value.shape for value in values]

    def look_compiled(given: tuple[Tensor, ...]) -> Tensor:
        with _expect_compiler():
            return (compiled if [value.shape for value in given] == shapes else look)(given)

    return look_compiled


@contextmanager
def _expect_compiler() -> Iterator[None]:
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
def _keep_tensors(model: nn.Module) -> Iterator[None]:
    """Leave buffers, such as the statistics of BatchNorm, and random numbers as they were, and no gradients."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
        for parameter in model.parameters():
            parameter.grad = None


def _time(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
