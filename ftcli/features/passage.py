"""An image's way through a network: which module it passes after which, and what each gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ftcli.models.anatomy import REFUSALS
from ftcli.models.tracing import keep_modes

State = tuple[int, int] | None
"""Which tensor it is, and how often it was written into; None for what is no tensor."""


@dataclass
class Call:
    """One call of a module: the state of the first value that it was given and of what it gave, and the calls within,
    in their order."""

    name: str
    given: State
    gave: State = None
    inner: list[Call] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Passage:
    """What a batch did in a network: the call of the whole, and the first input and the output of each module's last
    call."""

    root: Call
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


class _Follower:
    def __init__(self) -> None:
        self.frames = [Call("", None)]
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.held: list[Any] = []  # a tensor that is gone would leave its number to another

    def enter(self, name: str, inputs: tuple[Any, ...]) -> None:
        given = inputs[0] if inputs else None
        self.held.append(given)
        self.inputs[name] = given
        call = Call(name, _state(given))
        self.frames[-1].inner.append(call)
        self.frames.append(call)

    def leave(self, name: str, output: Any) -> None:
        self.held.append(output)
        self.outputs[name] = output
        self.frames.pop().gave = _state(output)


def _state(value: Any) -> State:
    return (id(value), value._version) if isinstance(value, Tensor) else None


def follow(body: nn.Module, images: int, image_size: int) -> Passage:
    """Send images through a network on the meta device, in eval mode. Raises one of REFUSALS for a size that the
    network does not take."""
    follower = _Follower()
    hooks = []
    for name, module in body.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _module, given, name=name: follower.enter(name, given)))
        hooks.append(module.register_forward_hook(lambda _module, _given, out, name=name: follower.leave(name, out)))
    try:
        with keep_modes(body), torch.no_grad():
            body.eval()(torch.empty(images, 3, image_size, image_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Passage(follower.frames[0].inner[0], follower.inputs, follower.outputs)


def enlarge(body: nn.Module, image_size: int) -> nn.Module:
    """A copy of a network on the meta device that takes images of `image_size`, if its library can make one of it;
    else a copy that is as it was, which may take them too."""
    twin = copy.deepcopy(body)
    if isinstance(twin, VisionTransformer):
        places = (image_size // twin.patch_size) ** 2 + 1
        twin.image_size = image_size
        twin.encoder.pos_embedding = nn.Parameter(torch.empty(1, places, twin.hidden_dim, device="meta"))
    elif callable(resize := getattr(twin, "set_input_size", None)):  # timm's
        try:
            resize(img_size=image_size)
        except REFUSALS:
            return copy.deepcopy(body)
    return twin
