"""Which parameters and modules a stage leaves alone, and how fast the others learn."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ftcli.errors import RecipeError, suggest
from ftcli.models.anatomy import Anatomy
from ftcli.recipe.schema import SolvedStage, Stage, Through

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class Freezing:
    """What must not move in a stage: `parameters` by name; `modules` run in eval mode, and their buffers stay."""

    parameters: frozenset[str]
    modules: frozenset[str]


def resolve_freezing(
    model: nn.Module, anatomy: Anatomy, head_path: str, stage: Stage | SolvedStage, where: str
) -> Freezing:
    """What a stage's `freeze` and `batch_norm` come to in a network whose head sits at `head_path`.

    - backbone: all but the head's subtree; only the head's modules train, not even the containers around it.
    - patterns: what they match with all below, and every module all of whose parameters are frozen.
    - through a module: every parameter first used before the module is last left, as `anatomy` has it, those of
      containers too; modules all of whose parameters that freezes, and those without parameters that are entered
      before then.

    With `batch_norm: frozen` all BatchNorm layers that train run in eval mode; their scale and shift still train.
    Raises RecipeError with every fault of these, each beginning with `where`, the place of `freeze`: a pattern that
    matches nothing, a module that is not called, a stage that trains nothing.
    """
    faults: list[str] = []
    names = _Names(model, head_path)
    if stage.freeze == "none":
        freezing = Freezing(frozenset(), frozenset())
    elif stage.freeze == "backbone":
        freezing = names.match("backbone")
    elif isinstance(stage.freeze, Through):
        freezing = _freeze_through(model, anatomy, names, stage.freeze.through, where, faults)
    else:
        freezing = _freeze_patterns(model, names, stage.freeze, where, faults)
    if freezing.parameters.issuperset(name for name, _ in model.named_parameters()):
        faults.append(
            f"{where}: {_quote(stage.freeze)} leaves stage {stage.name!r} nothing to train; let at least the head train"
        )
    if faults:
        raise RecipeError(*faults)
    if isinstance(stage, Stage) and stage.batch_norm == "frozen":
        kinds = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
        norms = {name for name, module in model.named_modules() if isinstance(module, kinds)}
        freezing = Freezing(freezing.parameters, freezing.modules | norms)
    return freezing


def resolve_rates(model: nn.Module, head_path: str, lr_mult: Mapping[str, float], where: str) -> dict[str, float]:
    """The multiple of the learning rate of every parameter: that of the last pattern that matches it, else 1.

    Raises RecipeError with every pattern that matches nothing, each beginning with `where`, the place of
    `lr_mult`.
    """
    names = _Names(model, head_path)
    rates = {name: 1.0 for name, _ in model.named_parameters()}
    faults = []
    for pattern, multiple in lr_mult.items():
        matched = names.match(pattern)
        if not matched.parameters:
            faults.append(f"{where}: {names.miss(pattern, 'parameter')}")
        rates.update(dict.fromkeys(matched.parameters, multiple))
    if faults:
        raise RecipeError(*faults)
    return rates


def find_faults(
    model: nn.Module, anatomy: Anatomy, head_path: str, stage: Stage, locate: Callable[[str], str]
) -> tuple[str, ...]:
    """Every fault of a stage's `freeze` and `lr_mult`, a sentence each; empty where it has none.

    `locate` gives the place of the stage's key of that name.
    """
    checks: list[Callable[[], object]] = [
        lambda: resolve_freezing(model, anatomy, head_path, stage, locate("freeze")),
        lambda: resolve_rates(model, head_path, stage.lr_mult, locate("lr_mult")),
    ]
    faults: list[str] = []
    for check in checks:
        try:
            check()
        except RecipeError as error:
            faults += error.faults
    return tuple(faults)


def apply_freezing(model: nn.Module, freezing: Freezing) -> None:
    """Let exactly the parameters that are not frozen require gradients. Frozen ones lose theirs."""
    for name, parameter in model.named_parameters():
        frozen = name in freezing.parameters
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None


def set_modes(model: nn.Module, freezing: Freezing) -> None:
    """Put the network in train mode with the frozen modules in eval mode. To be called whenever training begins or
    goes on after an evaluation."""
    model.train()
    for name, module in model.named_modules():
        if name in freezing.modules:
            module.training = False


def list_frozen_tensors(model: nn.Module, freezing: Freezing) -> dict[str, torch.Tensor]:
    """The tensors that must be the same bits after the stage: frozen parameters and buffers of eval-mode modules."""
    frozen: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if name in freezing.parameters
    }
    frozen.update(
        (name, buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[0] in freezing.modules
    )
    return frozen


def list_norm_and_bias(model: nn.Module) -> frozenset[str]:
    """The parameters that weight decay may skip: all of norm layers, and every one of a single dimension."""
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or isinstance(model.get_submodule(name.rpartition(".")[0]), _NORMS)
    )


class _Names:
    """The names of a network's modules and parameters, and what patterns match among them."""

    def __init__(self, model: nn.Module, head_path: str) -> None:
        self.modules = [name for name, _ in model.named_modules()]
        self.parameters = [name for name, _ in model.named_parameters()]
        self.head = head_path

    def match(self, pattern: str) -> Freezing:
        """The parameters and modules that a pattern takes in, with all below; both empty where it matches nothing."""
        if pattern == "head":
            return self._below({self.head})
        if pattern == "backbone":
            head = self._below({self.head})
            return Freezing(frozenset(self.parameters) - head.parameters, frozenset(self.modules) - head.modules)
        return self._below({name for name in [*self.modules, *self.parameters] if fnmatch.fnmatchcase(name, pattern)})

    def miss(self, pattern: str, what: str) -> str:
        """What to say of a pattern that matches nothing of that kind."""
        known = {"head", "backbone", *(top for name in self.parameters for top in _upwards(name))}
        return f"{pattern!r} matches no {what} of the network; {suggest(pattern, known)}"

    def _below(self, tops: set[str]) -> Freezing:
        def inside(names: Iterable[str]) -> frozenset[str]:
            return frozenset(name for name in names if any(top in tops for top in _upwards(name)))

        return Freezing(inside(self.parameters), inside(self.modules))


def _upwards(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _quote(freeze: object) -> str:
    if isinstance(freeze, tuple):
        return f"[{', '.join(freeze)}]"
    return f"{{through: {freeze.through}}}" if isinstance(freeze, Through) else str(freeze)


def _freeze_patterns(
    model: nn.Module, names: _Names, patterns: Iterable[str], where: str, faults: list[str]
) -> Freezing:
    parameters: set[str] = set()
    modules: set[str] = set()
    for pattern in patterns:
        matched = names.match(pattern)
        if not matched.parameters and not matched.modules:
            faults.append(f"{where}: {names.miss(pattern, 'module or parameter')}")
        parameters |= matched.parameters
        modules |= matched.modules
    return Freezing(frozenset(parameters), frozenset(modules | _list_covered(model, parameters)))


def _freeze_through(
    model: nn.Module, anatomy: Anatomy, names: _Names, last: str, where: str, faults: list[str]
) -> Freezing:
    last = names.head if last == "head" else last
    if last not in names.modules or not last:
        faults.append(f"{where}: no module is called {last!r}; {suggest(last, filter(None, names.modules))}")
        return Freezing(frozenset(), frozenset())
    if last not in anatomy.left:
        faults.append(f"{where}: no image passes through {last!r} itself; name a module above it or a list of patterns")
        return Freezing(frozenset(), frozenset())
    end = anatomy.left[last]
    parameters = {name for name, time in anatomy.first_use.items() if time < end}
    modules = _list_covered(model, parameters)
    for name, module in model.named_modules():
        if anatomy.entered.get(name, end) < end and next(module.parameters(), None) is None:
            modules.add(name)
    return Freezing(frozenset(parameters), frozenset(modules))


def _list_covered(model: nn.Module, parameters: set[str]) -> set[str]:
    """The modules that have parameters, all of them among these."""
    return {
        name
        for name, module in model.named_modules()
        if (inner := [f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters()])
        and parameters.issuperset(inner)
    }
