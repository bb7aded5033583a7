"""What is where in a network: the order in which an image passes through it, its head, and the cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ftcli.errors import RecipeError
from ftcli.models.cut import Cut, find_cut
from ftcli.models.tracing import keep_modes, sketch
from ftcli.results import HeadPlace

__all__ = [
    "REFUSALS",
    "Anatomy",
    "Cut",
    "SizeRefused",
    "describe_head",
    "examine",
    "find_cut",
    "find_head",
    "first_line",
]

REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
"""What networks raise when an image has a size that they were not made for."""


@dataclass(frozen=True)
class Anatomy:
    """What one image of `image_size` pixels a side does in a network. Times count modules entered, modules left and
    operations, from 1.

    `entered` and `left` are the first time that a module is entered and the last time that it is left, in the order
    of the former; modules that are never called have neither. `shapes` are the shapes of modules' last outputs
    for one image, None where that is no tensor. `first_use` is when an operation first reads a parameter. `output` is
    the network's own shape for one image; `plain` tells whether its output is a tensor.

    `work` counts, by time, the multiplications of convolutions, linear layers and matrix products, attention's
    included, as torchvision's published figures do; neither element-wise operations nor biases.
    """

    image_size: int
    entered: Mapping[str, int]
    left: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...] | None]
    first_use: Mapping[str, int]
    work: Mapping[int, int]
    plain: bool

    @property
    def multiply_adds(self) -> int:
        return sum(self.work.values())

    def measure_share(self, trainable: Collection[str]) -> float:
        """The share of the multiply-adds from the first use of any of these parameters on: what gradients flow
        through when they train. 1 where none of them is used."""
        begin = min((self.first_use[name] for name in trainable if name in self.first_use), default=0)
        return sum(count for time, count in self.work.items() if time >= begin) / max(1, self.multiply_adds)

    @property
    def output(self) -> tuple[int, ...] | None:
        return self.shapes[""]


class SizeRefused(RecipeError):
    """A network takes no images of a size: `told` says where and why, the message also what to do."""

    def __init__(self, told: str, remedy: str) -> None:
        self.told = told
        super().__init__(f"{told}; {remedy}")


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.time = 0
        self.entered: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.first_use: dict[str, int] = {}
        self.work: dict[int, int] = {}

    def enter(self, name: str) -> None:
        self.time += 1
        self.entered.setdefault(name, self.time)

    def leave(self, name: str, output: Any) -> None:
        self.time += 1
        self.left[name] = self.time
        self.shapes[name] = _shape_of_one(output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.time += 1
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, nn.Parameter) and id(value) in self.names:
                self.first_use.setdefault(self.names[id(value)], self.time)
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self.work[self.time] = flops // 2  # it counts a multiplication and an addition as two
        return result


def examine(model: nn.Module, image_size: int, where: str = "data.image_size", *, training: bool = False) -> Anatomy:
    """Send one image through a network, on the meta device and in eval mode (or, with `training`, two in train mode).

    The network, which may hold real tensors or none, stays as it is. Raises SizeRefused that begins with `where` if
    it takes no images of this size.
    """
    body = sketch(model)
    recorder = _Recorder(body)
    hooks = []
    for name, module in body.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: recorder.enter(name)))
        hooks.append(
            module.register_forward_hook(lambda _module, _inputs, output, name=name: recorder.leave(name, output))
        )
    images = torch.empty(2 if training else 1, 3, image_size, image_size, device="meta")
    try:
        with keep_modes(body), torch.no_grad(), recorder:
            output = body.train(training)(images)
    except REFUSALS as error:
        raise SizeRefused(
            f"{where}: the network takes no images of {image_size} x {image_size} pixels ({first_line(error)})",
            "give another size",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Anatomy(
        image_size,
        recorder.entered,
        recorder.left,
        recorder.shapes,
        recorder.first_use,
        recorder.work,
        isinstance(output, torch.Tensor),
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")


def find_head(model: nn.Module, anatomy: Anatomy, where: str = "backbone.name") -> HeadPlace:
    """The head: of all layers with parameters, the last that an image enters.

    Raises RecipeError that begins with `where` if that is no Linear or 1 x 1 Conv2d that gives as many values as the
    network, or if another one gives its output too, as where a network was distilled and answers with two heads.
    """
    called = sorted(anatomy.entered, key=lambda name: anatomy.entered[name])
    own = [name for name in called if name and _owns_parameters(model.get_submodule(name))]
    outputs = anatomy.output or ()
    linear = [
        name for name in own if _is_linear(model.get_submodule(name)) and (anatomy.shapes[name] or ())[:1] == outputs
    ]
    answers = [name for name in linear if anatomy.shapes[name] == outputs]
    if len(answers) > 1:
        raise RecipeError(
            f"{where}: the network answers with {len(answers)} heads ({', '.join(answers)}), and a recipe's head takes "
            "the place of one; choose another model"
        )
    if own and own[-1] in linear:
        return describe_head(model, own[-1])
    raise RecipeError(
        f"{where}: the network has no linear layer at its end that gives its output of shape {list(outputs)} (its last "
        f"layer is {(own or ['none'])[-1]}); choose another model"
    )


def describe_head(model: nn.Module, path: str) -> HeadPlace:
    """What is at the head's place: the width of what its first layer reads and of what its last one gives."""
    head = model.get_submodule(path)
    layers = [module for module in head.modules() if _is_linear(module)]
    inputs, outputs = layers[0], layers[-1]
    return HeadPlace(
        path,
        type(head).__name__,
        int(getattr(inputs, "in_features", getattr(inputs, "in_channels", 0))),
        int(getattr(outputs, "out_features", getattr(outputs, "out_channels", 0))),
    )


def _owns_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(recurse=False), None) is not None


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _shape_of_one(output: Any) -> tuple[int, ...] | None:
    if not isinstance(output, torch.Tensor):
        return None
    shape = tuple(output.shape)
    return shape[1:] if shape[:1] == (1,) else shape
