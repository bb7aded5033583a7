"""Which parameters and modules a stage leaves alone, and how fast the others learn."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ftcli.errors import RecipeError, suggest
from ftcli.models.summary import ModelSummary
from ftcli.recipe.schema import FreezeThrough, HeadFitStage, Stage

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class FrozenNames:
    """What must not move in a stage: `parameters` by name; `modules` run in eval mode, and their buffers stay."""

    parameters: frozenset[str]
    modules: frozenset[str]


def resolve_freeze(
    model: nn.Module, summary: ModelSummary, head_path: str, stage: Stage | HeadFitStage, location: str
) -> FrozenNames:
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
    errors: list[str] = []
    matcher = _PatternMatcher(model, head_path)
    if stage.freeze == "none":
        frozen_names = FrozenNames(frozenset(), frozenset())
    elif stage.freeze == "backbone":
        frozen_names = matcher.match("backbone")
    elif isinstance(stage.freeze, FreezeThrough):
        frozen_names = _freeze_through(model, summary, matcher, stage.freeze.through, location, errors)
    else:
        frozen_names = _freeze_patterns(model, matcher, stage.freeze, location, errors)
    if frozen_names.parameters.issuperset(name for name, _ in model.named_parameters()):
        errors.append(
            f"{location}: {_format_freeze(stage.freeze)} leaves stage {stage.name!r} nothing to train; let at least the head train"
        )
    if errors:
        raise RecipeError(*errors)
    if isinstance(stage, Stage) and stage.batch_norm == "frozen":
        norm_types = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
        batch_norms = {name for name, module in model.named_modules() if isinstance(module, norm_types)}
        frozen_names = FrozenNames(frozen_names.parameters, frozen_names.modules | batch_norms)
    return frozen_names


def resolve_lr_mults(model: nn.Module, head_path: str, lr_mult: Mapping[str, float], location: str) -> dict[str, float]:
    """The multiple of the learning rate of every parameter: that of the last pattern that matches it, else 1.

    Raises RecipeError with every pattern that matches nothing, each beginning with `where`, the place of
    `lr_mult`.
    """
    matcher = _PatternMatcher(model, head_path)
    lr_mults = {name: 1.0 for name, _ in model.named_parameters()}
    errors = []
    for pattern, multiplier in lr_mult.items():
        matched = matcher.match(pattern)
        if not matched.parameters:
            errors.append(f"{location}: {matcher.no_match_message(pattern, 'parameter')}")
        lr_mults.update(dict.fromkeys(matched.parameters, multiplier))
    if errors:
        raise RecipeError(*errors)
    return lr_mults


def find_stage_errors(
    model: nn.Module, summary: ModelSummary, head_path: str, stage: Stage, locate: Callable[[str], str]
) -> tuple[str, ...]:
    """Every fault of a stage's `freeze` and `lr_mult`, a sentence each; empty where it has none.

    `locate` gives the place of the stage's key of that name.
    """
    checks: list[Callable[[], object]] = [
        lambda: resolve_freeze(model, summary, head_path, stage, locate("freeze")),
        lambda: resolve_lr_mults(model, head_path, stage.lr_mult, locate("lr_mult")),
    ]
    errors: list[str] = []
    for check in checks:
        try:
            check()
        except RecipeError as error:
            errors += error.messages
    return tuple(errors)


def set_requires_grad(model: nn.Module, frozen_names: FrozenNames) -> None:
    """Let exactly the parameters that are not frozen require gradients. Frozen ones lose theirs."""
    for name, parameter in model.named_parameters():
        frozen = name in frozen_names.parameters
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None


def set_train_mode(model: nn.Module, frozen_names: FrozenNames) -> None:
    """Put the network in train mode with the frozen modules in eval mode. To be called whenever training begins or
    goes on after an evaluation."""
    model.train()
    for name, module in model.named_modules():
        if name in frozen_names.modules:
            module.training = False


def list_frozen_tensors(model: nn.Module, frozen_names: FrozenNames) -> dict[str, torch.Tensor]:
    """The tensors that must be the same bits after the stage: frozen parameters and buffers of eval-mode modules."""
    frozen: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if name in frozen_names.parameters
    }
    frozen.update(
        (name, buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[0] in frozen_names.modules
    )
    return frozen


def list_norm_and_bias(model: nn.Module) -> frozenset[str]:
    """The parameters that weight decay may skip: all of norm layers, and every one of a single dimension."""
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or isinstance(model.get_submodule(name.rpartition(".")[0]), _NORMS)
    )


class _PatternMatcher:
    """The names of a network's modules and parameters, and what patterns match among them."""

    def __init__(self, model: nn.Module, head_path: str) -> None:
        self.modules = [name for name, _ in model.named_modules()]
        self.parameters = [name for name, _ in model.named_parameters()]
        self.head_path = head_path

    def match(self, pattern: str) -> FrozenNames:
        """The parameters and modules that a pattern takes in, with all below; both empty where it matches nothing."""
        if pattern == "head":
            return self._subtrees({self.head_path})
        if pattern == "backbone":
            head_names = self._subtrees({self.head_path})
            return FrozenNames(
                frozenset(self.parameters) - head_names.parameters, frozenset(self.modules) - head_names.modules
            )
        return self._subtrees(
            {name for name in [*self.modules, *self.parameters] if fnmatch.fnmatchcase(name, pattern)}
        )

    def no_match_message(self, pattern: str, kind: str) -> str:
        """What to say of a pattern that matches nothing of that kind."""
        known = {"head", "backbone", *(top for name in self.parameters for top in _self_and_ancestors(name))}
        return f"{pattern!r} matches no {kind} of the network; {suggest(pattern, known)}"

    def _subtrees(self, roots: set[str]) -> FrozenNames:
        def select(names: Iterable[str]) -> frozenset[str]:
            return frozenset(name for name in names if any(top in roots for top in _self_and_ancestors(name)))

        return FrozenNames(select(self.parameters), select(self.modules))


def _self_and_ancestors(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _format_freeze(freeze: object) -> str:
    if isinstance(freeze, tuple):
        return f"[{', '.join(freeze)}]"
    return f"{{through: {freeze.through}}}" if isinstance(freeze, FreezeThrough) else str(freeze)


def _freeze_patterns(
    model: nn.Module, matcher: _PatternMatcher, patterns: Iterable[str], location: str, errors: list[str]
) -> FrozenNames:
    parameters: set[str] = set()
    modules: set[str] = set()
    for pattern in patterns:
        matched = matcher.match(pattern)
        if not matched.parameters and not matched.modules:
            errors.append(f"{location}: {matcher.no_match_message(pattern, 'module or parameter')}")
        parameters |= matched.parameters
        modules |= matched.modules
    return FrozenNames(frozenset(parameters), frozenset(modules | _list_fully_frozen_modules(model, parameters)))


def _freeze_through(
    model: nn.Module, summary: ModelSummary, matcher: _PatternMatcher, through: str, location: str, errors: list[str]
) -> FrozenNames:
    through = matcher.head_path if through == "head" else through
    if through not in matcher.modules or not through:
        errors.append(f"{location}: no module is called {through!r}; {suggest(through, filter(None, matcher.modules))}")
        return FrozenNames(frozenset(), frozenset())
    if through not in summary.exit_order:
        errors.append(
            f"{location}: no image passes through {through!r} itself; name a module above it or a list of patterns"
        )
        return FrozenNames(frozenset(), frozenset())
    exit_time = summary.exit_order[through]
    parameters = {name for name, first_use in summary.first_use.items() if first_use < exit_time}
    modules = _list_fully_frozen_modules(model, parameters)
    for name, module in model.named_modules():
        if summary.enter_order.get(name, exit_time) < exit_time and next(module.parameters(), None) is None:
            modules.add(name)
    return FrozenNames(frozenset(parameters), frozenset(modules))


def _list_fully_frozen_modules(model: nn.Module, parameters: set[str]) -> set[str]:
    """The modules that have parameters, all of them among these."""
    return {
        name
        for name, module in model.named_modules()
        if (
            parameter_names := [
                f"{name}.{parameter_name}".lstrip(".") for parameter_name, _ in module.named_parameters()
            ]
        )
        and parameters.issuperset(parameter_names)
    }
