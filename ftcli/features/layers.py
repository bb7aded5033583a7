"""The layers of a network whose outputs are taken, by their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError, suggest
from ftcli.features.axes import Axes, find_axes
from ftcli.features.blocks import choose_blocks
from ftcli.features.graphs import build_graph, list_nodes, run_graph
from ftcli.features.passage import Passage, enlarge, follow
from ftcli.models.anatomy import REFUSALS, Anatomy, examine
from ftcli.models.tracing import keep_modes, sketch

Kind = Literal["input", "module", "node"]


@dataclass(frozen=True)
class Layer:
    """A value in a network. `name` is how it is shown; `target` is the path of the head whose input it is, the module
    whose last output it is, or the node of the graph that torchvision's feature extraction makes.

    `output_shape` is that of one image, before pooling, for the images that the layer was resolved for, and `axes` what
    is known of it. `depth` is the share of the network's multiply-adds done before the output is there, from 0 to 1:
    for a node, up to the end of the last module before it that works once; 1 for the input of the head.
    """

    name: str
    kind: Kind
    target: str
    output_shape: tuple[int, ...]
    depth: float
    axes: Axes = Axes()  # noqa: RUF009  # it is frozen


def resolve_layers(
    model: nn.Module, head: str, names: Sequence[str], image_size: int, option: str = "--layer"
) -> tuple[Layer, ...]:
    """The layers of these names, in the order of the names, for images of `image_size` pixels a side.

    Without names it is the input of the head, the module at the path `head`; for ("all",) it is the chain of blocks
    that `choose_blocks` finds, and the input of the head last. A name is that of a module, `input of <head>`, that of a
    node of the graph in eval mode, or a pattern of module names, in which * stands for anything but a dot; a module
    comes before a node. The network, which may hold real tensors or none, stays as it is.

    Raises RecipeError with every fault of the names, each beginning with `option`: a layer that is not there, that is
    named twice, or whose output is no single tensor with the images first. Raises SizeRefused if the network takes no
    images of this size.
    """
    survey = _Survey(sketch(model), head, image_size)
    if tuple(names) in ((), ("all",)):
        blocks = choose_blocks(survey.body, survey.first, head) if names else ()
        usable = [name for name in blocks if _find_fault(survey.observe("module", name)) is None]
        return (*(survey.describe("module", name) for name in usable), survey.describe("input", head))
    found: list[tuple[str, Kind, str]] = []
    faults: list[str] = []
    for name in names:
        if name == "all" and not survey.find(name):
            faults.append(f"{option} all: stands for a chain of layers and takes no others beside it; give it alone")
            continue
        matched = survey.find(name)
        found += [(name, *place) for place in matched]
        if not matched:
            faults.append(f"{option} {name}: {survey.miss(name)}")
    survey.compute([target for _, kind, target in found if kind == "node"])
    places = [(kind, target) for _, kind, target in found]
    for number, (name, kind, target) in enumerate(found):
        if (kind, target) in places[:number]:
            faults.append(f"{option} {name}: {_name(kind, target)} is named twice; name it once")
        elif fault := _find_fault(survey.observe(kind, target)):
            faults.append(f"{option} {_name(kind, target)}: its output is {fault}")
    if faults:
        raise RecipeError(*faults)
    return tuple(survey.describe(*place) for place in places)


@dataclass(frozen=True)
class _Pair:
    """A value for two images, and for three images, larger ones where `grown`."""

    two: Any
    three: Any
    grown: bool


class _Survey:
    """What two small batches do in a network on the meta device."""

    def __init__(self, body: nn.Module, head: str, image_size: int) -> None:
        self.body, self.head, self.image_size = body, head, image_size
        try:
            self.first = follow(body, 2, image_size)
        except REFUSALS:
            examine(body, image_size)  # which tells it
            raise
        self.larger, self.second, self.side = self._grow()
        self.grown = self.side != image_size
        self.computed: dict[str, _Pair] = {}

    def _grow(self) -> tuple[nn.Module, Passage, int]:
        """The network for images of twice the size and what three of them do in it; else for those of its own size."""
        side = 2 * self.image_size
        larger = enlarge(self.body, side)
        try:
            return larger, follow(larger, 3, side), side
        except REFUSALS:
            return self.body, follow(self.body, 3, self.image_size), self.image_size

    @cached_property
    def anatomy(self) -> Anatomy:
        return examine(self.body, self.image_size)

    @cached_property
    def nodes(self) -> tuple[str, ...] | None:
        return list_nodes(self.body)

    def find(self, name: str) -> list[tuple[Kind, str]]:
        if name in self.first.outputs and name:
            return [("module", name)]
        if name == _name("input", self.head):
            return [("input", self.head)]
        if "*" in name:
            parts = name.split(".")
            called = sorted(self.first.outputs, key=lambda each: self.anatomy.left[each])
            return [("module", each) for each in called if each and _match(each.split("."), parts)]
        return [("node", name)] if name in (self.nodes or ()) else []

    def miss(self, name: str) -> str:
        modules = [each for each in self.first.outputs if each]
        if "*" in name:
            return f"no image passes through a module that this matches; {suggest(name, modules)}"
        if self.nodes is None:
            return (
                "no image passes through a module of this name, and the network has no graph nodes, since its code "
                f"cannot be traced; {suggest(name, modules)}"
            )
        return f"no image passes through a module or graph node of this name; {suggest(name, [*modules, *self.nodes])}"

    def compute(self, nodes: Sequence[str]) -> None:
        """Find what nodes come to, so that they can be observed."""
        if nodes:
            small, large = (
                _compute(body, nodes, images, side)
                for body, images, side in ((self.body, 2, self.image_size), (self.larger, 3, self.side))
            )
            self.computed = {node: _Pair(small[node], large[node], self.grown) for node in nodes}

    def observe(self, kind: Kind, target: str) -> _Pair:
        if kind == "node":
            return self.computed[target]
        values = [each.inputs if kind == "input" else each.outputs for each in (self.first, self.second)]
        return _Pair(values[0][target], values[1][target], self.grown)

    def describe(self, kind: Kind, target: str) -> Layer:
        pair = self.observe(kind, target)
        shape = tuple(pair.two.shape[1:])
        axes = find_axes(self.body, shape, tuple(pair.three.shape[1:]) if pair.grown else None)
        return Layer(_name(kind, target), kind, target, shape, self._measure_depth(kind, target), axes)

    def _measure_depth(self, kind: Kind, target: str) -> float:
        if kind == "input":
            return 1.0
        module = target if kind == "module" else self._find_module_before(target)
        end = self.anatomy.left.get(module, 0) if module else 0
        done = sum(count for time, count in self.anatomy.work.items() if time <= end)
        return done / max(1, self.anatomy.multiply_adds)

    def _find_module_before(self, node: str) -> str:
        nodes = self.nodes or ()
        before = nodes[: nodes.index(node) + 1]
        once = [each for each in before if each in self.anatomy.left and f"{each}_1" not in nodes]
        return once[-1] if once else ""


def _name(kind: Kind, target: str) -> str:
    return f"input of {target}" if kind == "input" else target


def _match(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatch.fnmatchcase, name, pattern))


def _compute(body: nn.Module, nodes: Sequence[str], images: int, side: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    with keep_modes(body), torch.no_grad():
        run_graph(build_graph(body, nodes), torch.empty(images, 3, side, side, device="meta"), values.__setitem__)
    return values


def _find_fault(pair: _Pair) -> str | None:
    """What an output is if it is no tensor with the images first, and what to choose; None if it is one."""
    two, three = pair.two, pair.three
    if isinstance(two, (tuple, list, dict)):
        return f"a {type(two).__name__} of {len(two)}, not one tensor; choose a layer within it or after it"
    if not isinstance(two, Tensor) or not isinstance(three, Tensor):
        return f"no tensor but of type {type(two).__name__}; choose a layer that gives a tensor"
    if tuple(two.shape[:1]) != (2,) or tuple(three.shape[:1]) != (3,) or two.ndim != three.ndim:
        return (
            f"of shape {list(two.shape)} for 2 images, which does not begin with the number of images; choose a layer "
            "around it or after it"
        )
    return None
