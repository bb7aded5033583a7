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

from ftcli.models.fx_trace import preserve_training_mode
from ftcli.models.summary import FORWARD_ERRORS

TensorVersion = tuple[int, int] | None
"""Which tensor it is, and how often it was written into; None for what is no tensor."""


@dataclass
class ModuleCall:
    """One call of a module: the state of the first value that it was given and of what it gave, and the calls within,
    in their order."""

    name: str
    input_version: TensorVersion
    output_version: TensorVersion = None
    children: list[ModuleCall] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class CallTrace:
    """What a batch did in a network: the call of the whole, and the first input and the output of each module's last
    call."""

    root: ModuleCall
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


class _CallRecorder:
    def __init__(self) -> None:
        self.stack = [ModuleCall("", None)]
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.keep_alive: list[Any] = []  # a tensor that is gone would leave its number to another

    def enter(self, name: str, inputs: tuple[Any, ...]) -> None:
        first_input = inputs[0] if inputs else None
        self.keep_alive.append(first_input)
        self.inputs[name] = first_input
        call = ModuleCall(name, _get_version(first_input))
        self.stack[-1].children.append(call)
        self.stack.append(call)

    def leave(self, name: str, output: Any) -> None:
        self.keep_alive.append(output)
        self.outputs[name] = output
        self.stack.pop().output_version = _get_version(output)


def _get_version(value: Any) -> TensorVersion:
    return (id(value), value._version) if isinstance(value, Tensor) else None


def trace_calls(model: nn.Module, num_images: int, image_size: int) -> CallTrace:
    """Send images through a network on the meta device, in eval mode. Raises one of REFUSALS for a size that the
    network does not take."""
    recorder = _CallRecorder()
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _module, inputs, name=name: recorder.enter(name, inputs)))
        hooks.append(
            module.register_forward_hook(lambda _module, _inputs, output, name=name: recorder.leave(name, output))
        )
    try:
        with preserve_training_mode(model), torch.no_grad():
            model.eval()(torch.empty(num_images, 3, image_size, image_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return CallTrace(recorder.stack[0].children[0], recorder.inputs, recorder.outputs)


def resize_model_input(model: nn.Module, image_size: int) -> nn.Module:
    """A copy of a network on the meta device that takes images of `image_size`, if its library can make one of it;
    else a copy that is as it was, which may take them too."""
    resized = copy.deepcopy(model)
    if isinstance(resized, VisionTransformer):
        num_tokens = (image_size // resized.patch_size) ** 2 + 1
        resized.image_size = image_size
        resized.encoder.pos_embedding = nn.Parameter(torch.empty(1, num_tokens, resized.hidden_dim, device="meta"))
    elif callable(resize := getattr(resized, "set_input_size", None)):  # timm's
        try:
            resize(img_size=image_size)
        except FORWARD_ERRORS:
            return copy.deepcopy(model)
    return resized
