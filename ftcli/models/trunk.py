"""A network up to the input of its head, where it need not be traced to be parted."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftcli.models.tracing import UNTRACEABLE, keep_modes, sketch


class Trunk(nn.Module):
    """What a network does before its head: from images to a tuple of the one value that its head is given.

    Shares all layers and tensors with the network but the head's, which it does not have.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = _end_at(network, head.split("."))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        try:
            self.network(images)
        except _Reached as reached:
            return (reached.value,)
        raise RuntimeError("the network gave an output without going through its head")


class _Reached(BaseException):
    """The head was reached, with a value. It goes past what a network's own code may catch."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class _End(nn.Module):
    """Stands where the head was."""

    def forward(self, value: Tensor) -> Tensor:
        raise _Reached(value)


def _end_at(module: nn.Module, path: list[str]) -> nn.Module:
    """A copy of a module whose descendant at a path is an end; only the modules on the way to it are copies."""
    twin = copy.copy(module)
    first, rest = path[0], path[1:]
    twin._modules = dict(module._modules)
    inner = twin._modules[first]
    assert inner is not None
    twin._modules[first] = _end_at(inner, rest) if rest else _End()
    return twin


def find_summit(moving: Collection[str]) -> str:
    """The lowest module that some modules are or are in, "" for the network itself."""
    paths = [name.split(".") for name in moving]
    shortest = min(map(len, paths), default=0)
    shared = 0
    while shared < shortest and len({path[shared] for path in paths}) == 1:
        shared += 1
    return ".".join(paths[0][:shared]) if paths else ""


@dataclass(frozen=True)
class _Passage:
    """What a head did in a pass of the network: what it was given, and whether the network gave what it gave."""

    given: tuple[Any, ...]
    last: bool


def measure_input(model: nn.Module, head: str, still: Collection[str], image_size: int) -> tuple[int, ...] | None:
    """The shape, for one image, of the value that a module is given, if it is called once, with that tensor alone, and
    what it gives is what the network gives, in eval mode and with all but `still` in train mode; else None.

    The network, which stays as it was, has real or meta tensors; a copy with real ones is run where its code branches
    on what it computes.
    """
    for copied in (sketch(model), model):
        body = copy.deepcopy(copied) if copied is model else copied
        try:
            with keep_modes(body):
                passages = [_watch(body.eval(), head, images, image_size) for images in (2, 3)]
                body.train()
                for name in still:
                    body.get_submodule(name).training = False
                passages += [_watch(body, head, images, image_size) for images in (2, 3)]
        except UNTRACEABLE:
            continue
        return _agree(passages)
    return None


def _watch(body: nn.Module, head: str, images: int, image_size: int) -> _Passage:
    given: list[tuple[Any, ...]] = []
    gave: list[tuple[Any, int]] = []
    layer = body.get_submodule(head)

    def note(_: nn.Module, values: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given.append((*values, *named.values()))
        gave.append((output, output._version if isinstance(output, Tensor) else 0))

    device = next(iter([*body.parameters(), *body.buffers()])).device
    handle = layer.register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = body(torch.rand(images, 3, image_size, image_size, device=device))
    finally:
        handle.remove()
    last = len(gave) == 1 and output is gave[0][0] and output._version == gave[0][1]
    return _Passage(given[0] if last else (), last)


def _agree(passages: list[_Passage]) -> tuple[int, ...] | None:
    shapes = set()
    for passage, images in zip(passages, (2, 3, 2, 3), strict=True):
        if not passage.last or len(passage.given) != 1 or not isinstance(passage.given[0], Tensor):
            return None
        shape = tuple(passage.given[0].shape)
        if shape[:1] != (images,) or not passage.given[0].is_floating_point():
            return None
        shapes.add(shape[1:])
    return shapes.pop() if len(shapes) == 1 else None
