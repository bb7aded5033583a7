"""A network up to the input of its head, where it need not be traced to be parted."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftcli.models.fx_trace import TRACING_ERRORS, preserve_training_mode, to_meta


class HeadlessModel(nn.Module):
    """What a network does before its head: from images to a tuple of the one value that its head is given.

    Shares all layers and tensors with the network but the head's, which it does not have.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = _replace_with_stub(network, head.split("."))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        try:
            self.network(images)
        except _HeadReached as reached:
            return (reached.value,)
        raise RuntimeError("the network gave an output without going through its head")


class _HeadReached(BaseException):
    """The head was reached, with a value. It goes past what a network's own code may catch."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class _HeadStub(nn.Module):
    """Stands where the head was."""

    def forward(self, value: Tensor) -> Tensor:
        raise _HeadReached(value)


def _replace_with_stub(module: nn.Module, path: list[str]) -> nn.Module:
    """A copy of a module whose descendant at a path is an end; only the modules on the way to it are copies."""
    clone = copy.copy(module)
    first, rest = path[0], path[1:]
    clone._modules = dict(module._modules)
    child = clone._modules[first]
    assert child is not None
    clone._modules[first] = _replace_with_stub(child, rest) if rest else _HeadStub()
    return clone


def common_parent(names: Collection[str]) -> str:
    """The lowest module that some modules are or are in, "" for the network itself."""
    paths = [name.split(".") for name in names]
    shortest = min(map(len, paths), default=0)
    depth = 0
    while depth < shortest and len({path[depth] for path in paths}) == 1:
        depth += 1
    return ".".join(paths[0][:depth]) if paths else ""


@dataclass(frozen=True)
class _HeadCall:
    """What a head did in a pass of the network: what it was given, and whether the network gave what it gave."""

    inputs: tuple[Any, ...]
    is_model_output: bool


def infer_input_shape(
    model: nn.Module, head: str, eval_modules: Collection[str], image_size: int
) -> tuple[int, ...] | None:
    """The shape, for one image, of the value that a module is given, if it is called once, with that tensor alone, and
    what it gives is what the network gives, in eval mode and with all but `still` in train mode; else None.

    The network, which stays as it was, has real or meta tensors; a copy with real ones is run where its code branches
    on what it computes.
    """
    for candidate in (to_meta(model), model):
        runnable = copy.deepcopy(candidate) if candidate is model else candidate
        try:
            with preserve_training_mode(runnable):
                head_calls = [_record_head_call(runnable.eval(), head, images, image_size) for images in (2, 3)]
                runnable.train()
                for name in eval_modules:
                    runnable.get_submodule(name).training = False
                head_calls += [_record_head_call(runnable, head, images, image_size) for images in (2, 3)]
        except TRACING_ERRORS:
            continue
        return _common_input_shape(head_calls)
    return None


def _record_head_call(model: nn.Module, head: str, num_images: int, image_size: int) -> _HeadCall:
    inputs: list[tuple[Any, ...]] = []
    outputs: list[tuple[Any, int]] = []
    layer = model.get_submodule(head)

    def record_call(_: nn.Module, values: tuple[Any, ...], keyword_values: dict[str, Any], output: Any) -> None:
        inputs.append((*values, *keyword_values.values()))
        outputs.append((output, output._version if isinstance(output, Tensor) else 0))

    device = next(iter([*model.parameters(), *model.buffers()])).device
    handle = layer.register_forward_hook(record_call, with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(torch.rand(num_images, 3, image_size, image_size, device=device))
    finally:
        handle.remove()
    is_model_output = len(outputs) == 1 and output is outputs[0][0] and output._version == outputs[0][1]
    return _HeadCall(inputs[0] if is_model_output else (), is_model_output)


def _common_input_shape(head_calls: list[_HeadCall]) -> tuple[int, ...] | None:
    shapes = set()
    for head_call, num_images in zip(head_calls, (2, 3, 2, 3), strict=True):
        if not head_call.is_model_output or len(head_call.inputs) != 1 or not isinstance(head_call.inputs[0], Tensor):
            return None
        shape = tuple(head_call.inputs[0].shape)
        if shape[:1] != (num_images,) or not head_call.inputs[0].is_floating_point():
            return None
        shapes.add(shape[1:])
    return shapes.pop() if len(shapes) == 1 else None
