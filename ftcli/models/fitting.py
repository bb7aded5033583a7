"""Which tensor of a weights file belongs where in a network: all of the backbone finds its place, or none does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_COUNTER = "num_batches_tracked"  # what BatchNorm of PyTorch before 0.4.1 did not have; nothing is computed from it
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}  # what PyTorch puts into names

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Copy:
    """The tensors of a file that stand under one prefix, without it, and `apart` those that do not.

    `rivals` are other prefixes under which the whole backbone stands too, and `averaged` tells that it is preferred to
    them since it holds averaged weights, which evaluation uses.
    """

    tensors: dict[str, Tensor]
    prefix: str
    apart: dict[str, Tensor]
    rivals: tuple[str, ...] = ()
    averaged: bool = False


@dataclass(frozen=True)
class Fit:
    """The file's tensors by the network's names, every one of the backbone's among them, in shapes that may differ;
    `spare` are further ones, by the file's names, which are another head's."""

    tensors: dict[str, Tensor]
    spare: dict[str, Tensor]

    def find_misshapen(self, wanted: Tensors, head: str) -> tuple[str, ...]:
        """The backbone's tensors whose shape is another in the network."""
        return tuple(
            name
            for name, tensor in self.tensors.items()
            if tensor.shape != wanted[name].shape and not within(name, head)
        )


@dataclass(frozen=True)
class Misfit:
    """Names that keep a file from being a network's: those it lacks, and those it has besides."""

    missing: tuple[str, ...]
    over: tuple[str, ...]


def find_copy(given: Tensors, wanted: Tensors, head: str) -> Copy:
    """Take off what wraps a network's names in a file: wrappers' marks, and the prefix with which they are found.

    Where the whole backbone stands under a prefix, what does not bear it belongs to something else: a criterion, a
    metric, another copy. Otherwise nothing is apart, and the prefix is the one that fits most.
    """
    plain = _unwrap_names(given)
    needed = {name for name in wanted if not within(name, head) and not is_counter(name)}
    found: Counter[str] = Counter({"": 0})
    for name in plain:
        starts = [0, *(index + 1 for index, sign in enumerate(name) if sign == ".")]
        found.update(name[:start] for start in starts if name[start:] in needed)
    whole = [prefix for prefix, count in found.items() if count == len(needed)]
    if not whole:
        prefix = found.most_common(1)[0][0]
        return Copy({name.removeprefix(prefix): tensor for name, tensor in plain.items()}, prefix, {})
    averaged = [prefix for prefix in whole if "ema" in re.split(r"[._]", prefix)]
    prefix = (averaged or whole)[0]
    return Copy(
        {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)},
        prefix,
        {name: tensor for name, tensor in plain.items() if not name.startswith(prefix)},
        tuple(other for other in whole if other != prefix),
        len(averaged) == 1,
    )


def fit_names(given: Tensors, wanted: Tensors, head: str) -> Fit | Misfit:
    """Give every tensor of the network's backbone the file's of the same name; none may be missing or left over.

    The head (all below the path `head`) may be missing, or another, under its own name or one of its own beside it.
    Batch counters may be missing.
    """
    missing = tuple(name for name in wanted if name not in given and not within(name, head) and not is_counter(name))
    over = tuple(name for name in given if name not in wanted and not within(name, head))
    if missing or (over and not _are_another_head(over, given, wanted, head)):
        return Misfit(missing, over)
    named = {name: given[name] for name in wanted if name in given}
    return Fit(named, {name: tensor for name, tensor in given.items() if name not in named})


def fit_order(given: Tensors, wanted: Tensors, head: str) -> Fit | None:
    """Give the network's tensors those of the file in order, whatever their names; None where their numbers differ.

    The file may lack all batch counters, the head, or both.
    """
    bare = [name for name in wanted if not is_counter(name)]
    for names in (list(wanted), bare):
        for part in (names, [name for name in names if not within(name, head)]):
            if len(part) == len(given):
                return Fit(dict(zip(part, given.values(), strict=True)), {})
    return None


def within(name: str, path: str) -> bool:
    """Whether a tensor belongs to the module at a path."""
    return name.startswith(f"{path}.")


def is_counter(name: str) -> bool:
    """Whether a tensor counts batches, which no result depends on."""
    return name.rpartition(".")[2] == _COUNTER


def _unwrap_names(given: Tensors) -> dict[str, Tensor]:
    plain = {".".join(part for part in name.split(".") if part not in _WRAPPERS): given[name] for name in given}
    return plain if len(plain) == len(given) else dict(given)


def _are_another_head(over: tuple[str, ...], given: Tensors, wanted: Tensors, head: str) -> bool:
    """Whether tensors without a place are a head of another name: one module, where the network's head could be or
    above, and the file has no tensor of that head."""
    if any(within(name, head) for name in given):
        return False
    parents = ["".join(f"{part}." for part in head.split(".")[:depth]) for depth in range(head.count(".") + 1)]
    for parent in parents:
        children = {name.removeprefix(parent).partition(".")[0] for name in over if name.startswith(parent)}
        if len(children) == 1 and all(name.startswith(parent) for name in over):
            module = f"{parent}{children.pop()}."
            if not any(name.startswith(module) and not within(name, head) for name in wanted):
                return True
    return False
