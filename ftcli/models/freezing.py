"""Resolve a stage's freeze and lr_mult patterns to names, and freeze a network's parameters and modules."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ftcli.errors import RunError, format_list, suggest
from ftcli.models.cut import cut_model
from ftcli.models.state_dict import hash_tensor, list_self_and_ancestors
from ftcli.models.summary import ModelSummary, count_parameters
from ftcli.recipe.schema import FreezeThrough, HeadFitStage, Stage
from ftcli.results import StageSummary

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class FrozenNames:
    """The names of a stage's frozen parameters, and of the modules in eval mode, whose buffers do not change."""

    parameters: frozenset[str]
    modules: frozenset[str]


def resolve_freeze(
    model: nn.Module,
    summary: ModelSummary,
    head_path: str,
    stage: Stage | HeadFitStage,
    location: str,
    errors: list[str],
) -> FrozenNames:
    """Return the names that a stage's `freeze` and `batch_norm` freeze in a network with its head at `head_path`.

    - backbone: all names outside the head; the containers of the head run in eval mode too.
    - patterns: the matched names with all below, and modules whose parameters are all frozen.
    - through a module: parameters first used before the last exit of the module, those of containers included;
      modules whose parameters are all frozen, and modules without parameters that are entered before that exit.

    With `batch_norm: frozen` all BatchNorm layers run in eval mode; their weight and bias still train.
    Appends to `errors` a message for each pattern without a match, for an unknown or uncalled module, and for a stage
    without trainable parameters. `location` is that of the key `freeze`.
    """
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
            f"{location}: {_format_freeze(stage.freeze)} freezes all parameters in stage {stage.name!r}; unfreeze at "
            "least the head"
        )
    if isinstance(stage, Stage) and stage.batch_norm == "frozen":
        norm_types = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
        batch_norms = {name for name, module in model.named_modules() if isinstance(module, norm_types)}
        frozen_names = FrozenNames(frozen_names.parameters, frozen_names.modules | batch_norms)
    return frozen_names


def resolve_lr_mults(
    model: nn.Module, head_path: str, lr_mult: Mapping[str, float], location: str, errors: list[str]
) -> dict[str, float]:
    """Return the lr multiplier of every parameter: that of the last pattern that matches it, else 1.

    Appends to `errors` a message for each pattern without a match. `location` is that of the key `lr_mult`.
    """
    matcher = _PatternMatcher(model, head_path)
    lr_mults = {name: 1.0 for name, _ in model.named_parameters()}
    for pattern, multiplier in lr_mult.items():
        matched = matcher.match(pattern)
        if not matched.parameters:
            errors.append(f"{location}: {matcher.format_no_match(pattern, 'parameter')}")
        lr_mults.update(dict.fromkeys(matched.parameters, multiplier))
    return lr_mults


def set_requires_grad(model: nn.Module, frozen_names: FrozenNames) -> None:
    """Set `requires_grad` of every parameter: False for frozen ones, whose gradients are cleared, True for others."""
    for name, parameter in model.named_parameters():
        is_frozen = name in frozen_names.parameters
        parameter.requires_grad_(not is_frozen)
        if is_frozen:
            parameter.grad = None


def set_train_mode(model: nn.Module, frozen_names: FrozenNames) -> None:
    """Put the network in train mode and its frozen modules in eval mode. Call it again after each evaluation."""
    model.train()
    for name, module in model.named_modules():
        if name in frozen_names.modules:
            module.training = False


def list_frozen_tensors(model: nn.Module, frozen_names: FrozenNames) -> dict[str, torch.Tensor]:
    """Return the tensors that a stage must not change: frozen parameters and the buffers of frozen modules."""
    frozen: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if name in frozen_names.parameters
    }
    frozen.update(
        (name, buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[0] in frozen_names.modules
    )
    return frozen


def list_norm_and_bias(model: nn.Module) -> frozenset[str]:
    """Return the parameters that weight decay may skip: those of norm layers and all with at most one dimension."""
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or isinstance(model.get_submodule(name.rpartition(".")[0]), _NORMS)
    )


class _PatternMatcher:
    """Matches patterns against the names of a network's modules and parameters."""

    def __init__(self, model: nn.Module, head_path: str) -> None:
        self.modules = [name for name, _ in model.named_modules()]
        self.parameters = [name for name, _ in model.named_parameters()]
        self.head_path = head_path

    def match(self, pattern: str) -> FrozenNames:
        """Return the parameters and modules that a pattern matches, with all below; empty without a match."""
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

    def format_no_match(self, pattern: str, kind: str) -> str:
        """Return the message for a pattern without a match; `kind` is the type of name that it should match."""
        known = {"head", "backbone", *(top for name in self.parameters for top in list_self_and_ancestors(name))}
        return f"{pattern!r} matches no {kind} of the network; {suggest(pattern, known)}"

    def _subtrees(self, roots: set[str]) -> FrozenNames:
        def select(names: Iterable[str]) -> frozenset[str]:
            return frozenset(name for name in names if any(top in roots for top in list_self_and_ancestors(name)))

        return FrozenNames(select(self.parameters), select(self.modules))


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
            errors.append(f"{location}: {matcher.format_no_match(pattern, 'module or parameter')}")
        parameters |= matched.parameters
        modules |= matched.modules
    return FrozenNames(frozenset(parameters), frozenset(modules | _list_fully_frozen_modules(model, parameters)))


def _freeze_through(
    model: nn.Module, summary: ModelSummary, matcher: _PatternMatcher, through: str, location: str, errors: list[str]
) -> FrozenNames:
    through = matcher.head_path if through == "head" else through
    if through not in matcher.modules or not through:
        errors.append(f"{location}: unknown module {through!r}; {suggest(through, filter(None, matcher.modules))}")
        return FrozenNames(frozenset(), frozenset())
    if through not in summary.exit_order:
        errors.append(
            f"{location}: module {through!r} is not called in the forward pass; give a module that contains it or a "
            "list of patterns"
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
    """Return the modules with parameters, all of which are among these."""
    return {
        name
        for name, module in model.named_modules()
        if (parameter_names := [_join(name, inner) for inner, _ in module.named_parameters()])
        and parameters.issuperset(parameter_names)
    }


def summarize_stage(model: nn.Module, frozen_names: FrozenNames, name: str, image_size: int) -> StageSummary:
    """Return what a stage trains and freezes, and the boundary tensors of its cut for images of this size."""
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


def _group_by_frozen(model: nn.Module, frozen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the frozen and the trainable names: the highest modules whose parameters are all frozen or all trainable,
    and the own parameters of modules with both."""
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


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a network has BatchNorm layers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a digest of the bits of each tensor."""
    return {name: hash_tensor(tensor) for name, tensor in tensors.items()}


def check_frozen_unchanged(
    expected_digests: Mapping[str, str], tensors: Mapping[str, torch.Tensor], stage: str
) -> None:
    """Raise RunError with the names of the frozen tensors that differ from their digests in any bit."""
    digests = hash_tensors(tensors)
    changed = [name for name in expected_digests if digests.get(name) != expected_digests[name]]
    if changed:
        raise RunError(
            f"stage {stage}: frozen tensors changed: {format_list(changed, 3)}; do not use the stage's weights, and "
            "report this with the recipe"
        )
