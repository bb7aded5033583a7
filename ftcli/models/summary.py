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
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.fx_trace import preserve_training_mode, to_meta
from ftcli.results import HeadInfo

__all__ = [
    "FORWARD_ERRORS",
    "ModelCut",
    "ModelSummary",
    "UnsupportedImageSizeError",
    "cut_model",
    "describe_head",
    "find_head",
    "first_line",
    "summarize",
]

FORWARD_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
"""What networks raise when an image has a size that they were not made for."""


@dataclass(frozen=True)
class ModelSummary:
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
    enter_order: Mapping[str, int]
    exit_order: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...] | None]
    first_use: Mapping[str, int]
    macs: Mapping[int, int]
    returns_tensor: bool

    @property
    def multiply_adds(self) -> int:
        return sum(self.macs.values())

    def backward_fraction(self, trainable: Collection[str]) -> float:
        """The share of the multiply-adds from the first use of any of these parameters on: what gradients flow
        through when they train. 1 where none of them is used."""
        start_time = min((self.first_use[name] for name in trainable if name in self.first_use), default=0)
        return sum(count for time, count in self.macs.items() if time >= start_time) / max(1, self.multiply_adds)

    @property
    def output(self) -> tuple[int, ...] | None:
        return self.shapes[""]


class UnsupportedImageSizeError(RecipeError):
    """A network takes no images of a size: `told` says where and why, the message also what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; {remedy}")


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.time = 0
        self.enter_order: dict[str, int] = {}
        self.exit_order: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.first_use: dict[str, int] = {}
        self.macs: dict[int, int] = {}

    def enter(self, name: str) -> None:
        self.time += 1
        self.enter_order.setdefault(name, self.time)

    def leave(self, name: str, output: Any) -> None:
        self.time += 1
        self.exit_order[name] = self.time
        self.shapes[name] = _sample_shape(output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.time += 1
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, nn.Parameter) and id(value) in self.parameter_names:
                self.first_use.setdefault(self.parameter_names[id(value)], self.time)
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self.macs[self.time] = flops // 2  # it counts a multiplication and an addition as two
        return result


def summarize(
    model: nn.Module, image_size: int, location: str = "data.image_size", *, training: bool = False
) -> ModelSummary:
    """Send one image through a network, on the meta device and in eval mode (or, with `training`, two in train mode).

    The network, which may hold real tensors or none, stays as it is. Raises UnsupportedImageSizeError that begins with `where` if
    it takes no images of this size.
    """
    meta_model = to_meta(model)
    recorder = _Recorder(meta_model)
    hooks = []
    for name, module in meta_model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: recorder.enter(name)))
        hooks.append(
            module.register_forward_hook(lambda _module, _inputs, output, name=name: recorder.leave(name, output))
        )
    images = torch.empty(2 if training else 1, 3, image_size, image_size, device="meta")
    try:
        with preserve_training_mode(meta_model), torch.no_grad(), recorder:
            output = meta_model.train(training)(images)
    except FORWARD_ERRORS as error:
        raise UnsupportedImageSizeError(
            f"{location}: the network takes no images of {image_size} x {image_size} pixels ({first_line(error)})",
            "give another size",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return ModelSummary(
        image_size,
        recorder.enter_order,
        recorder.exit_order,
        recorder.shapes,
        recorder.first_use,
        recorder.macs,
        isinstance(output, torch.Tensor),
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")


def find_head(model: nn.Module, summary: ModelSummary, location: str = "backbone.name") -> HeadInfo:
    """The head: of all layers with parameters, the last that an image enters.

    Raises RecipeError that begins with `where` if that is no Linear or 1 x 1 Conv2d that gives as many values as the
    network, or if another one gives its output too, as where a network was distilled and answers with two heads.
    """
    call_order = sorted(summary.enter_order, key=lambda name: summary.enter_order[name])
    layers = [name for name in call_order if name and _has_own_parameters(model.get_submodule(name))]
    output_shape = summary.output or ()
    linear_layers = [
        name
        for name in layers
        if _is_linear(model.get_submodule(name)) and (summary.shapes[name] or ())[:1] == output_shape
    ]
    output_layers = [name for name in linear_layers if summary.shapes[name] == output_shape]
    if len(output_layers) > 1:
        raise RecipeError(
            f"{location}: the network answers with {len(output_layers)} heads ({', '.join(output_layers)}), and a recipe's head takes "
            "the place of one; choose another model"
        )
    if layers and layers[-1] in linear_layers:
        return describe_head(model, layers[-1])
    raise RecipeError(
        f"{location}: the network has no linear layer at its end that gives its output of shape {list(output_shape)} (its last "
        f"layer is {(layers or ['none'])[-1]}); choose another model"
    )


def describe_head(model: nn.Module, path: str) -> HeadInfo:
    """What is at the head's place: the width of what its first layer reads and of what its last one gives."""
    head = model.get_submodule(path)
    layers = [module for module in head.modules() if _is_linear(module)]
    first_layer, last_layer = layers[0], layers[-1]
    return HeadInfo(
        path,
        type(head).__name__,
        int(getattr(first_layer, "in_features", getattr(first_layer, "in_channels", 0))),
        int(getattr(last_layer, "out_features", getattr(last_layer, "out_channels", 0))),
    )


def _has_own_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(recurse=False), None) is not None


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _sample_shape(output: Any) -> tuple[int, ...] | None:
    if not isinstance(output, torch.Tensor):
        return None
    shape = tuple(output.shape)
    return shape[1:] if shape[:1] == (1,) else shape
