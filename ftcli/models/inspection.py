"""What there is to tell about a network: its layers, its head, its weights, and what a stage trains of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from ftcli.models.factory import create_model, default_preprocessing, list_weights
from ftcli.models.freezing import FrozenNames
from ftcli.models.summary import ModelSummary, cut_model, find_head, summarize
from ftcli.results import InspectResult, LayerInfo, Preprocessing, StageSummary


def inspect_model(name: str, depth: int, preprocessing: Preprocessing | None = None) -> InspectResult:
    """A model as its library has it, for the images of its default weights or of others; the name must be known.

    Takes no memory for weights. `depth` is how far below the network layers are listed: 1 are its own children.
    """
    preprocessing = preprocessing or default_preprocessing(name, "none")
    network = create_model(name, True, preprocessing.image_size)
    summary = summarize(network, preprocessing.image_size)
    return InspectResult(
        name=name,
        parameters=count_parameters(network),
        trainable=count_parameters(network),
        multiply_adds=summary.multiply_adds,
        head=find_head(network, summary),
        layers=list_layers(network, summary, depth, frozenset()),
        weights=list_weights(name),
        preprocessing=preprocessing,
    )


def count_parameters(model: nn.Module, exclude: Collection[str] = ()) -> int:
    """How many scalars the parameters hold, except those of the names in `without`."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in exclude)


def list_layers(model: nn.Module, summary: ModelSummary, depth: int, frozen: Collection[str]) -> tuple[LayerInfo, ...]:
    """The modules down to a depth, as the network names them; `frozen` are the parameters that do not train."""
    return tuple(
        LayerInfo(
            name=name,
            type=type(module).__name__,
            output_shape=summary.shapes.get(name),
            parameters=count_parameters(module),
            trainable=count_parameters(module, _relative_names(frozen, name)),
            depth=name.count(".") + 1,
        )
        for name, module in model.named_modules()
        if name and name.count(".") < depth
    )


def summarize_stage(model: nn.Module, frozen_names: FrozenNames, name: str, image_size: int) -> StageSummary:
    """What a stage trains of a network and what it keeps, and where it is cut for images of this size."""
    cut = cut_model(model, frozen_names.parameters, frozen_names.modules, image_size)
    frozen, trained = _group_by_frozen(model, frozen_names.parameters)
    trainable = count_parameters(model, frozen_names.parameters)
    return StageSummary(
        name=name,
        trainable=trainable,
        frozen=count_parameters(model) - trainable,
        trained_layers=trained,
        frozen_layers=frozen,
        cut=None if cut is None else () if cut.is_uncut else cut.boundary,
    )


def _relative_names(names: Iterable[str], module: str) -> frozenset[str]:
    return frozenset(name.removeprefix(f"{module}.") for name in names if name.startswith(f"{module}."))


def _group_by_frozen(model: nn.Module, frozen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The highest modules that are wholly frozen and wholly live, and the loose parameters of those that are mixed."""
    by_frozen: dict[bool, list[str]] = {True: [], False: []}

    def descend(name: str, module: nn.Module) -> None:
        frozen_states = {_join(name, inner) in frozen for inner, _ in module.named_parameters()}
        if len(frozen_states) == 1 and name:
            by_frozen[frozen_states.pop()].append(name)
        elif frozen_states:
            for parameter_name, _ in module.named_parameters(recurse=False):
                by_frozen[_join(name, parameter_name) in frozen].append(_join(name, parameter_name))
            for child_name, child in module.named_children():
                descend(_join(name, child_name), child)

    descend("", model)
    return tuple(by_frozen[True]), tuple(by_frozen[False])


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child
