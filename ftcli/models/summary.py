"""Summarize a network: call order, shapes, multiply-adds, head and layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ftcli.errors import RecipeError, first_line
from ftcli.models.fx_trace import preserve_training_mode, to_meta
from ftcli.models.hooks import forward_hooks
from ftcli.models.state_dict import is_inside
from ftcli.results import HeadInfo, LayerInfo

FORWARD_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
"""The errors that networks raise for an unsupported image size."""


@dataclass(frozen=True)
class ModelSummary:
    """A record of one forward pass. A time is the number of module entries, module exits and operations so far.

    `enter_order` is the time of a module's first entry and `exit_order` of its last exit; modules that are not called
    have neither. `first_use` is the time of the first operation that reads a parameter. `shapes` are the shapes of
    modules' last outputs for one image, None for other types than tensors.

    `macs` counts, by time, the multiply-adds of convolutions, linear layers and matrix products including attention,
    without element-wise operations and biases, as torchvision's published numbers do.
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
        """Return the fraction of the multiply-adds that gradients of these parameters flow through: those after the
        first use of any of them. 1 if none is used."""
        start_time = min((self.first_use[name] for name in trainable if name in self.first_use), default=0)
        return sum(count for time, count in self.macs.items() if time >= start_time) / max(1, self.multiply_adds)

    @property
    def output(self) -> tuple[int, ...] | None:
        """The shape of the network's output for one image, None if it is not a tensor."""
        return self.shapes[""]


class UnsupportedImageSizeError(RecipeError):
    """A network does not support an image size. `problem` is the message without its remedy."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; choose another size")


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
            self.macs[self.time] = flops // 2  # the registry counts a multiply-add as two
        return result


def summarize(
    model: nn.Module, image_size: int, location: str = "data.image_size", *, training: bool = False
) -> ModelSummary:
    """Summarize a forward pass of one image on the meta device in eval mode; of two in train mode with `training`.

    Does not change the network. Raises UnsupportedImageSizeError if it does not support this size.
    """
    meta_model = to_meta(model)
    recorder = _Recorder(meta_model)
    hooks = forward_hooks(
        meta_model,
        (name for name, _ in meta_model.named_modules()),
        on_input=lambda name, _: recorder.enter(name),
        on_output=recorder.leave,
    )
    images = torch.empty(2 if training else 1, 3, image_size, image_size, device="meta")
    try:
        with hooks, preserve_training_mode(meta_model), torch.no_grad(), recorder:
            output = meta_model.train(training)(images)
    except FORWARD_ERRORS as error:
        raise UnsupportedImageSizeError(
            f"{location}: the network does not support images of {image_size} x {image_size} pixels "
            f"({first_line(error)})"
        ) from error
    return ModelSummary(
        image_size,
        recorder.enter_order,
        recorder.exit_order,
        recorder.shapes,
        recorder.first_use,
        recorder.macs,
        isinstance(output, torch.Tensor),
    )


def find_head(model: nn.Module, summary: ModelSummary, location: str = "backbone.name") -> HeadInfo:
    """Return the head: the last called layer with parameters.

    Raises RecipeError unless it is a Linear or 1 x 1 Conv2d with the network's output width, or if the network has
    two heads, as a distilled network does.
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
            f"{location}: the network has {len(output_layers)} heads ({', '.join(output_layers)}) and a recipe "
            "replaces only one; choose another model"
        )
    if layers and layers[-1] in linear_layers:
        return describe_head(model, layers[-1])
    raise RecipeError(
        f"{location}: the network does not end with a linear layer of its output shape {list(output_shape)} (its last "
        f"layer is {(layers or ['none'])[-1]}); choose another model"
    )


def describe_head(model: nn.Module, path: str) -> HeadInfo:
    """Return the type of a head, the input width of its first layer and the output width of its last."""
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


def count_parameters(model: nn.Module, exclude: Collection[str] = ()) -> int:
    """Return the number of scalars in the parameters, except those named in `exclude`."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in exclude)


def list_layers(model: nn.Module, summary: ModelSummary, depth: int, frozen: Collection[str]) -> tuple[LayerInfo, ...]:
    """Return the modules down to a depth: 1 lists the network's children. `frozen` are parameters that do not train."""
    return tuple(
        LayerInfo(
            name=name,
            type=type(module).__name__,
            output_shape=summary.shapes.get(name),
            parameters=count_parameters(module),
            trainable=count_parameters(
                module, {inner.removeprefix(f"{name}.") for inner in frozen if is_inside(inner, name)}
            ),
            depth=name.count(".") + 1,
        )
        for name, module in model.named_modules()
        if name and name.count(".") < depth
    )
