"""Pretrained weights into a network: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ftcli.errors import CheckpointError
from ftcli.models.files import locate_weights, read_tensors
from ftcli.models.zoo import list_auxiliaries
from ftcli.recipe.schema import Backbone
from ftcli.results import Reporter

_COUNTER = "num_batches_tracked"  # what BatchNorm of PyTorch before 0.4.1 did not have; nothing is computed from it


@dataclass(frozen=True)
class Origin:
    """Where a network's weights came from: none, an address, or what the recipe says; and its file's SHA-256."""

    source: str
    sha256: str | None


def load_weights(model: nn.Module, backbone: Backbone, head_path: str, where: str, reporter: Reporter) -> Origin:
    """Load what a recipe's `backbone` says into a network that still has its original head, all of it or nothing.

    - match: name: after a prefix that all names share, such as `module.`, is taken off, every tensor of the backbone
      must be there in its shape, and none may be left over.
    - match: position: as many tensors as the network has, in its order, each of the same shape; names do not matter.

    In both, the head's tensors (those below `head_path`) may be missing or of other shapes; they are then left as
    they are, which the reporter is told, and BatchNorm's batch counters may be missing. Call it before the head is
    replaced: a replaced head of the same size would take the file's.

    Raises RecipeError for weights that do not exist, CheckpointError for a file that is missing, broken, hostile or
    does not fit. Each begins with `where`.
    """
    if backbone.weights == "none":
        return Origin("none", None)
    file = locate_weights(backbone.name, backbone.weights, where, reporter)
    given = read_tensors(file, backbone.name, where)
    wanted = dict(model.state_dict())
    head = {name for name in wanted if _inside(name, head_path)}
    place = f"{where}: {file.source}"
    if backbone.match == "position":
        chosen = _match_by_position(wanted, given, head, place)
    else:
        given = _strip_prefix(given, wanted)
        _check_names(wanted, given, head_path, backbone.name, place)
        chosen = {name: given[name] for name in wanted if name in given}
    fitting = {name: tensor for name, tensor in chosen.items() if tensor.shape == wanted[name].shape}
    left = [f"{name} {_shape(given[name])}" for name in given if _inside(name, head_path) and name not in fitting]
    left += [f"{name} {_shape(chosen[name])}" for name in chosen if name not in fitting and name not in given]
    if left:
        reporter.say(f"{file.source}: left out, since the head is another: {', '.join(left)}")
    model.load_state_dict(fitting, strict=False)
    return Origin(file.source, file.sha256)


def _inside(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _strip_prefix(given: dict[str, torch.Tensor], wanted: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Take off the prefix with which most names of the file are names of the network; often that is none."""
    prefixes: Counter[str] = Counter({"": sum(name in wanted for name in given)})
    for name in given:
        starts = [index + 1 for index, sign in enumerate(name) if sign == "."]
        prefixes.update(name[:start] for start in starts if name[start:] in wanted)
    prefix = prefixes.most_common(1)[0][0]
    return {name.removeprefix(prefix): tensor for name, tensor in given.items()}


def _check_names(
    wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], head: str, model: str, place: str
) -> None:
    missing = [name for name in wanted if name not in given and not _inside(name, head) and not _is_counter(name)]
    over = [name for name in given if name not in wanted and not _inside(name, head)]
    if over:
        auxiliaries = list_auxiliaries(model)
        over = [name for name in over if not any(_inside(name, part) for part in auxiliaries)]
    other = [
        f"{name} {_shape(given[name])} instead of {_shape(wanted[name])}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape and not _inside(name, head)
    ]
    if not (missing or over or other):
        return
    matched = sum(name in given and given[name].shape == tensor.shape for name, tensor in wanted.items())
    parts = [f"{matched} of {len(wanted)} tensors match"]
    for what, names in (("missing", missing), ("left over", over), ("of another shape", other)):
        if names:
            parts.append(f"{len(names)} {what}: {_list_first(names)}")
    backbone_names = {name for name in wanted if _inside(name, head)}
    remedy = "give weights of this network"
    if _pair(wanted, given, backbone_names) and not _find_misfit(wanted, given, backbone_names):
        remedy = "number and shapes agree in order: match: position would load them"
    raise CheckpointError(f"{place} does not fit {model}: {'; '.join(parts)}; {remedy}")


def _match_by_position(
    wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], head: set[str], place: str
) -> dict[str, torch.Tensor]:
    pairs = _pair(wanted, given, head)
    if not pairs:
        raise CheckpointError(
            f"{place} has {len(given)} tensors and the network {len(wanted)}; match: position needs as many, "
            "give weights of this network"
        )
    misfit = _find_misfit(wanted, given, head)
    if misfit:
        position, name, theirs = misfit
        raise CheckpointError(
            f"{place} does not fit at tensor {position} of {len(pairs)}: {name} is {_shape(wanted[name])} in the "
            f"network and {theirs} is {_shape(given[theirs])} in the file; give weights of this network"
        )
    return {name: given[theirs] for name, theirs in pairs}


def _pair(
    wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], head: set[str]
) -> list[tuple[str, str]]:
    """The network's and the file's names in order; empty where their numbers differ. The file may lack all batch
    counters, the head, or both."""
    bare = [name for name in wanted if not _is_counter(name)]
    for names in (list(wanted), bare):
        for part in (names, [name for name in names if name not in head]):
            if len(part) == len(given):
                return list(zip(part, given, strict=True))
    return []


def _find_misfit(
    wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], head: set[str]
) -> tuple[int, str, str] | None:
    for position, (name, theirs) in enumerate(_pair(wanted, given, head), 1):
        if name not in head and wanted[name].shape != given[theirs].shape:
            return position, name, theirs
    return None


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _shape(tensor: torch.Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _list_first(names: Iterable[str], show: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - show} more" if len(listed) > show else ""
    return ", ".join(listed[:show]) + more
