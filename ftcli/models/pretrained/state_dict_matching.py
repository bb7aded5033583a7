"""Which tensor of a weights file belongs where in a network: all of the backbone finds its place, or none does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_BATCH_COUNTER = (
    "num_batches_tracked"  # what BatchNorm of PyTorch before 0.4.1 did not have; nothing is computed from it
)
_WRAPPER_NAMES = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}  # what PyTorch puts into names

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class StrippedStateDict:
    """The tensors of a file that stand under one prefix, without it, and `apart` those that do not.

    `rivals` are other prefixes under which the whole backbone stands too, and `averaged` tells that it is preferred to
    them since it holds averaged weights, which evaluation uses.
    """

    tensors: dict[str, Tensor]
    prefix: str
    other: dict[str, Tensor]
    other_prefixes: tuple[str, ...] = ()
    is_ema: bool = False


@dataclass(frozen=True)
class Match:
    """The file's tensors by the network's names, every one of the backbone's among them, in shapes that may differ;
    `spare` are further ones, by the file's names, which are another head's."""

    tensors: dict[str, Tensor]
    head_only: dict[str, Tensor]

    def find_shape_mismatches(self, model_state: StateDict, head: str) -> tuple[str, ...]:
        """The backbone's tensors whose shape is another in the network."""
        return tuple(
            name
            for name, tensor in self.tensors.items()
            if tensor.shape != model_state[name].shape and not is_inside(name, head)
        )


@dataclass(frozen=True)
class Mismatch:
    """Names that keep a file from being a network's: those it lacks, and those it has besides."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def strip_prefix(file_state: StateDict, model_state: StateDict, head: str) -> StrippedStateDict:
    """Take off what wraps a network's names in a file: wrappers' marks, and the prefix with which they are found.

    Where the whole backbone stands under a prefix, what does not bear it belongs to something else: a criterion, a
    metric, another copy. Otherwise nothing is apart, and the prefix is the one that fits most.
    """
    unwrapped = _unwrap_names(file_state)
    backbone_names = {name for name in model_state if not is_inside(name, head) and not is_batch_counter(name)}
    counts: Counter[str] = Counter({"": 0})
    for name in unwrapped:
        starts = [0, *(index + 1 for index, char in enumerate(name) if char == ".")]
        counts.update(name[:start] for start in starts if name[start:] in backbone_names)
    complete_prefixes = [prefix for prefix, count in counts.items() if count == len(backbone_names)]
    if not complete_prefixes:
        prefix = counts.most_common(1)[0][0]
        return StrippedStateDict({name.removeprefix(prefix): tensor for name, tensor in unwrapped.items()}, prefix, {})
    ema_prefixes = [prefix for prefix in complete_prefixes if "ema" in re.split(r"[._]", prefix)]
    prefix = (ema_prefixes or complete_prefixes)[0]
    return StrippedStateDict(
        {name.removeprefix(prefix): tensor for name, tensor in unwrapped.items() if name.startswith(prefix)},
        prefix,
        {name: tensor for name, tensor in unwrapped.items() if not name.startswith(prefix)},
        tuple(other for other in complete_prefixes if other != prefix),
        len(ema_prefixes) == 1,
    )


def match_by_name(file_state: StateDict, model_state: StateDict, head: str) -> Match | Mismatch:
    """Give every tensor of the network's backbone the file's of the same name; none may be missing or left over.

    The head (all below the path `head`) may be missing, or another, under its own name or one of its own beside it.
    Batch counters may be missing.
    """
    missing = tuple(
        name
        for name in model_state
        if name not in file_state and not is_inside(name, head) and not is_batch_counter(name)
    )
    unexpected = tuple(name for name in file_state if name not in model_state and not is_inside(name, head))
    if missing or (unexpected and not _form_another_head(unexpected, file_state, model_state, head)):
        return Mismatch(missing, unexpected)
    matched = {name: file_state[name] for name in model_state if name in file_state}
    return Match(matched, {name: tensor for name, tensor in file_state.items() if name not in matched})


def match_by_position(file_state: StateDict, model_state: StateDict, head: str) -> Match | None:
    """Give the network's tensors those of the file in order, whatever their names; None where their numbers differ.

    The file may lack all batch counters, the head, or both.
    """
    names_without_counters = [name for name in model_state if not is_batch_counter(name)]
    for names in (list(model_state), names_without_counters):
        for candidate_names in (names, [name for name in names if not is_inside(name, head)]):
            if len(candidate_names) == len(file_state):
                return Match(dict(zip(candidate_names, file_state.values(), strict=True)), {})
    return None


def is_inside(name: str, path: str) -> bool:
    """Whether a tensor belongs to the module at a path."""
    return name.startswith(f"{path}.")


def is_batch_counter(name: str) -> bool:
    """Whether a tensor counts batches, which no result depends on."""
    return name.rpartition(".")[2] == _BATCH_COUNTER


def _unwrap_names(file_state: StateDict) -> dict[str, Tensor]:
    unwrapped = {
        ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES): file_state[name]
        for name in file_state
    }
    return unwrapped if len(unwrapped) == len(file_state) else dict(file_state)


def _form_another_head(unexpected: tuple[str, ...], file_state: StateDict, model_state: StateDict, head: str) -> bool:
    """Whether tensors without a place are a head of another name: one module, where the network's head could be or
    above, and the file has no tensor of that head."""
    if any(is_inside(name, head) for name in file_state):
        return False
    parents = ["".join(f"{part}." for part in head.split(".")[:depth]) for depth in range(head.count(".") + 1)]
    for parent in parents:
        children = {name.removeprefix(parent).partition(".")[0] for name in unexpected if name.startswith(parent)}
        if len(children) == 1 and all(name.startswith(parent) for name in unexpected):
            module = f"{parent}{children.pop()}."
            if not any(name.startswith(module) and not is_inside(name, head) for name in model_state):
                return True
    return False
