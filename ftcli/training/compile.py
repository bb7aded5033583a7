"""Compiled training steps (`compile: true`)."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError, RunError
from ftcli.features.pipeline import ForwardFn
from ftcli.results import format_duration
from ftcli.runtime import measure_seconds

logger = logging.getLogger(__name__)


def check_compiler(location: str, device: torch.device) -> None:
    """Raise RecipeError unless this machine can compile. `location` is that of the recipe's `compile`."""
    try:
        with _silence_compiler_warnings():
            torch.compile(torch.sin)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise RecipeError(
            f"{location}: true needs a C++ compiler (on a GPU: Triton), which fails here: {_first_line(error)}; "
            "install g++ and the headers of Python, or set compile: false"
        ) from error


def compile_forward(
    forward: ForwardFn,
    example_inputs: tuple[Tensor, ...],
    model: nn.Module,
    clock: Callable[[], float] = time.perf_counter,
) -> ForwardFn:
    """Return a forward function that is compiled for batches of the example's shape; other batches run eagerly.

    So the bits of a batch, such as the last of an epoch, do not depend on earlier batches. It is compiled for the
    current modes of the model's layers, and with gradients. Leaves the model's tensors and the random generators
    unchanged and clears its gradients. Reports the seconds of compiling and of a step before and after. Raises RunError
    if compiling fails.
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
                f"compile: true: this model cannot be compiled: {_first_line(error)}; set compile: false"
            ) from error
        compiled_seconds = min(measure_seconds(lambda: step(compiled), device, clock) for _ in range(2))
    logger.info(
        f"compile: took {format_duration(compile_seconds)}; a step takes {compiled_seconds:.3g} s, "
        f"{eager_seconds:.3g} s before"
    )
    shapes = [value.shape for value in example_inputs]

    def compiled_forward(inputs: tuple[Tensor, ...]) -> Tensor:
        with _silence_compiler_warnings():
            return (compiled if [value.shape for value in inputs] == shapes else forward)(inputs)

    return compiled_forward


@contextmanager
def _silence_compiler_warnings() -> Iterator[None]:
    """Silence PyTorch's warnings about its own internals and about CUDA tools that a CPU does not need."""
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")
            yield
    finally:
        torch_logger.setLevel(level)


@contextmanager
def _preserve_buffers_and_rng(model: nn.Module) -> Iterator[None]:
    """Restore buffers, such as the statistics of BatchNorm, and random generators at the end, and clear gradients."""
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
