"""What there is to tell about a network: its layers, its head, its weights, and what a stage trains of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from ftcli.models.anatomy import Anatomy, examine, find_cut, find_head
from ftcli.models.freezing import Freezing
from ftcli.models.zoo import build_network, default_preprocessing, list_weights
from ftcli.results import Inspection, Layer, Preprocessing, StageSummary


def inspect_model(name: str, depth: int, preprocessing: Preprocessing | None = None) -> Inspection:
    """A model as its library has it, for the images of its default weights or of others; the name must be known.

    Takes no memory for weights. `depth` is how far below the network layers are listed: 1 are its own children.
    """
    preprocessing = preprocessing or default_preprocessing(name, "none")
    network = build_network(name, True, preprocessing.image_size)
    anatomy = examine(network, preprocessing.image_size)
    return Inspection(
        name=name,
        parameters=count_parameters(network),
        trainable=count_parameters(network),
        multiply_adds=anatomy.multiply_adds,
        head=find_head(network, anatomy),
        layers=list_layers(network, anatomy, depth, frozenset()),
        weights=list_weights(name),
        preprocessing=preprocessing,
    )


def count_parameters(model: nn.Module, without: Collection[str] = ()) -> int:
    """How many scalars the parameters hold, except those of the names in `without`."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in without)


def list_layers(model: nn.Module, anatomy: Anatomy, depth: int, frozen: Collection[str]) -> tuple[Layer, ...]:
    """The modules down to a depth, as the network names them; `frozen` are the parameters that do not train."""
    return tuple(
        Layer(
            name=name,
            type=type(module).__name__,
            output_shape=anatomy.shapes.get(name),
            parameters=count_parameters(module),
            trainable=count_parameters(module, _relative(frozen, name)),
            depth=name.count(".") + 1,
        )
        for name, module in model.named_modules()
        if name and name.count(".") < depth
    )


def summarize_stage(model: nn.Module, freezing: Freezing, name: str, image_size: int) -> StageSummary:
    """What a stage trains of a network and what it keeps, and where it is cut for images of this size."""
    cut = find_cut(model, freezing.parameters, freezing.modules, image_size)
    frozen, live = _split_layers(model, freezing.parameters)
    trainable = count_parameters(model, freezing.parameters)
    return StageSummary(
        name=name,
        trainable=trainable,
        frozen=count_parameters(model) - trainable,
        trained_layers=live,
        frozen_layers=frozen,
        cut=None if cut is None else () if cut.whole else cut.crossing,
    )


def _relative(names: Iterable[str], module: str) -> frozenset[str]:
    return frozenset(name.removeprefix(f"{module}.") for name in names if name.startswith(f"{module}."))


def _split_layers(model: nn.Module, frozen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The highest modules that are wholly frozen and wholly live, and the loose parameters of those that are mixed."""
    wholly: dict[bool, list[str]] = {True: [], False: []}

    def descend(name: str, module: nn.Module) -> None:
        kinds = {_join(name, inner) in frozen for inner, _ in module.named_parameters()}
        if len(kinds) == 1 and name:
            wholly[kinds.pop()].append(name)
        elif kinds:
            for own, _ in module.named_parameters(recurse=False):
                wholly[_join(name, own) in frozen].append(_join(name, own))
            for child_name, child in module.named_children():
                descend(_join(name, child_name), child)

    descend("", model)
    return tuple(wholly[True]), tuple(wholly[False])


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child
