"""Match the tensors of a weights file to those of a network, and explain why they do not match."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from torch import Tensor

from ftcli.errors import CheckpointError, ErrorTable, RecipeError, format_list
from ftcli.models.factory import create_model, get_native_image_size, list_timm_models, list_torchvision_models
from ftcli.models.pretrained.pos_embed import is_pos_embed
from ftcli.models.pretrained_cfg import TIMM_PREFIX, get_default_weights
from ftcli.models.state_dict import StateDict, format_shape, is_inside
from ftcli.models.summary import find_head, summarize

_BATCH_COUNTER = "num_batches_tracked"  # missing in files of PyTorch before 0.4.1; no result depends on it
_WRAPPER_NAMES = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}  # PyTorch inserts them into names
_NUM_TABLE_ROWS = 12
_NUM_ROWS_BEFORE = 3  # rows of the table before the first difference
_MAX_LOG_RATIO = 0.04  # of a file's size to a model's parameters: a file also counts BatchNorm's statistics
_MAX_CANDIDATES = 6  # models that are created to compare names and shapes


@dataclass(frozen=True)
class StrippedStateDict:
    """The tensors of a file with one prefix, which is removed, and `other`, those without it.

    `other_prefixes` are further prefixes that contain the whole backbone; `is_ema` is true if this one is preferred to
    them because it holds averaged weights, which evaluation uses.
    """

    tensors: dict[str, Tensor]
    prefix: str
    other: dict[str, Tensor]
    other_prefixes: tuple[str, ...] = ()
    is_ema: bool = False


@dataclass(frozen=True)
class Match:
    """The file's tensors by the network's names, the whole backbone among them; shapes may differ. `head_only` are
    tensors of another head, by the file's names."""

    tensors: dict[str, Tensor]
    head_only: dict[str, Tensor]

    def find_shape_mismatches(self, model_state: StateDict, head: str) -> tuple[str, ...]:
        """Return the names of the backbone's tensors whose shapes differ."""
        return tuple(
            name
            for name, tensor in self.tensors.items()
            if tensor.shape != model_state[name].shape and not is_inside(name, head)
        )


@dataclass(frozen=True)
class Mismatch:
    """The names of the backbone that a file lacks, and the names that the network does not have."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchContext:
    """A network with its head's path, and the tensors of a weights file. `architecture` is the network's name in the
    file; `location` begins the error messages."""

    model: str
    model_state: StateDict
    head: str
    file_state: StateDict
    architecture: str | None
    location: str


def strip_prefix(file_state: StateDict, model_state: StateDict, head: str) -> StrippedStateDict:
    """Remove the names that wrappers insert, and the prefix of the network's names in a file.

    If the whole backbone has a prefix, tensors without it belong to something else: a criterion, a metric, another
    copy of the network. Otherwise the prefix with most matches is removed, and `other` is empty.
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
    """Match tensors by name: none of the backbone may be missing, and none may be unexpected.

    The head (all below the path `head`) may be missing or another one, under its own or another name. Batch counters
    may be missing.
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
    """Match tensors by their order, whatever their names; None if their numbers differ.

    The file may lack all batch counters, the head, or both.
    """
    names_without_counters = [name for name in model_state if not is_batch_counter(name)]
    for names in (list(model_state), names_without_counters):
        for candidate_names in (names, [name for name in names if not is_inside(name, head)]):
            if len(candidate_names) == len(file_state):
                return Match(dict(zip(candidate_names, file_state.values(), strict=True)), {})
    return None


def is_batch_counter(name: str) -> bool:
    """Return whether a tensor is BatchNorm's batch counter."""
    return name.rpartition(".")[2] == _BATCH_COUNTER


def _unwrap_names(file_state: StateDict) -> dict[str, Tensor]:
    unwrapped = {
        ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES): file_state[name]
        for name in file_state
    }
    return unwrapped if len(unwrapped) == len(file_state) else dict(file_state)


def _form_another_head(unexpected: tuple[str, ...], file_state: StateDict, model_state: StateDict, head: str) -> bool:
    """Return whether unexpected tensors are a head of another name: one module, a sibling of the network's head or of
    one of its containers, in a file without tensors of that head."""
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


def make_name_mismatch_error(context: MatchContext, mismatch: Mismatch = Mismatch()) -> CheckpointError:
    """Return the error for tensors that do not match by name, or match with other shapes."""
    model_state, file_state = context.model_state, context.file_state
    shared = [name for name in model_state if name in file_state]
    wrong_shapes = [
        f"{name} {format_shape(file_state[name])} instead of {format_shape(model_state[name])}"
        for name in shared
        if file_state[name].shape != model_state[name].shape and not is_inside(name, context.head)
    ]
    num_matched = sum(file_state[name].shape == model_state[name].shape for name in shared)
    parts = [f"{num_matched} of {len(model_state)} tensors match"]
    kinds = (("missing", mismatch.missing), ("unexpected", mismatch.unexpected), ("of another shape", wrong_shapes))
    parts += [f"{len(names)} {kind}: {format_list(names, 3)}" for kind, names in kinds if names]
    by_position = match_by_position(file_state, model_state, context.head)
    if by_position and not by_position.find_shape_mismatches(model_state, context.head):
        remedy = "number and shapes agree in order, so set match: position"
    else:
        remedy = _suggest_fix(context)
    message = f"{context.location} does not fit {context.model}: {'; '.join(parts)}; {remedy}"
    return CheckpointError(message, table=_build_comparison_table(context, by_name=True))


def make_position_mismatch_error(context: MatchContext) -> CheckpointError:
    """Return the error for tensors that do not match by position."""
    model_state, file_state = context.model_state, context.file_state
    by_name = match_by_name(file_state, model_state, context.head)
    if isinstance(by_name, Match) and not by_name.find_shape_mismatches(model_state, context.head):
        remedy = "names and shapes agree, so set match: name"
    else:
        remedy = _suggest_fix(context)
    match = match_by_position(file_state, model_state, context.head)
    if match is None:
        message = (
            f"{context.location} has {len(file_state)} tensors and the network {len(model_state)}, and match: position "
            f"needs the same number; {remedy}"
        )
    else:
        name = match.find_shape_mismatches(model_state, context.head)[0]
        index = list(match.tensors).index(name)
        message = (
            f"{context.location} does not fit {context.model} at tensor {index + 1} of {len(file_state)}: {name} is "
            f"{format_shape(model_state[name])} in the network and {list(file_state)[index]} is "
            f"{format_shape(match.tensors[name])} in the file; {remedy}"
        )
    return CheckpointError(message, table=_build_comparison_table(context, by_name=False))


def _suggest_fix(context: MatchContext) -> str:
    guesses = guess_architecture(context.file_state, context.architecture, context.model)
    if not guesses:
        return "give weights of this network"
    names = " or ".join(name for name, _ in guesses)
    name, match = guesses[0]
    setting = f"{name} and match: position" if match == "position" else name
    return f"the file's tensors are those of {names}; set backbone.name: {setting}"


def _build_comparison_table(context: MatchContext, *, by_name: bool) -> ErrorTable:
    """Return both sides in order, from shortly before the first difference.

    Batch counters are skipped: many files lack them, which would shift all later rows.
    """
    model_rows, file_rows = (
        [(name, format_shape(tensor)) for name, tensor in state_dict.items() if not is_batch_counter(name)]
        for state_dict in (context.model_state, context.file_state)
    )
    rows = list(zip_longest(model_rows, file_rows, fillvalue=("-", "-")))
    first = next((index for index, (a, b) in enumerate(rows) if (a != b if by_name else a[1] != b[1])), 0)
    start = max(0, min(first - _NUM_ROWS_BEFORE, len(rows) - _NUM_TABLE_ROWS))
    shown = rows[start : start + _NUM_TABLE_ROWS]
    return ErrorTable(
        (">", "network", "shape", "file", "shape"),
        tuple((str(number), *a, *b) for number, (a, b) in enumerate(shown, start + 1)),
        f"tensors {start + 1} to {start + len(shown)} of {len(rows)}, in order, without batch counters",
    )


def guess_architecture(
    tensors: StateDict, architecture: str | None, model: str
) -> list[tuple[str, Literal["name", "position"]]]:
    """Return the models other than `model` that a file's tensors match, each with the setting of `match`.

    Candidates are the architecture that the file names and torchvision's models of about the same size. They are
    created on the meta device.
    """
    candidates = dict.fromkeys([*_list_models_named(architecture), *_list_models_of_similar_size(tensors)])
    candidates.pop(model, None)
    guesses = [(name, match) for name in candidates if (match := _match_model(name, tensors))]
    return [guess for guess in guesses if guess[1] == "name"] or guesses


def _list_models_named(architecture: str | None) -> Iterable[str]:
    if architecture in list_torchvision_models():
        yield architecture
    if architecture is not None and f"{TIMM_PREFIX}{architecture}" in list_timm_models():
        yield f"{TIMM_PREFIX}{architecture}"


def _list_models_of_similar_size(tensors: StateDict) -> list[str]:
    """Return torchvision's models with about as many parameters as a file, the nearest first.

    A file may have another head or none, so its size with a head for the model's own classes counts too.
    """
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    total = sum(tensor.numel() for tensor in floating)
    matrices = [tensor for tensor in floating if tensor.ndim > 1]
    heads = [(tensor.shape[1], tensor.numel() + tensor.shape[0]) for tensor in matrices[-1:]]
    heads += [(tensor.shape[0], 0) for tensor in floating[-1:] if tensor.ndim == 1]
    distances: dict[str, float] = {}
    for name in list_torchvision_models():
        entry = get_default_weights(name)
        if not entry.parameters:
            continue
        num_classes = len(entry.library_entry.meta["categories"])
        totals = [total, *(total - num_own + (width + 1) * num_classes for width, num_own in heads)]
        distances[name] = min(abs(math.log(max(count, 1) / entry.parameters)) for count in totals)
    nearest = sorted((distance, name) for name, distance in distances.items() if distance < _MAX_LOG_RATIO)
    return [name for _, name in nearest[:_MAX_CANDIDATES]]


def _match_model(name: str, tensors: StateDict) -> Literal["name", "position"] | None:
    model = create_model(name, meta=True)
    model_state = model.state_dict()
    if not _has_similar_shapes(tensors, model_state):
        return None
    try:
        head = find_head(model, summarize(model, get_native_image_size(name))).path
    except RecipeError:
        return None
    by_name = match_by_name(strip_prefix(tensors, model_state, head).tensors, model_state, head)
    if isinstance(by_name, Match) and all(map(is_pos_embed, by_name.find_shape_mismatches(model_state, head))):
        return "name"
    by_position = match_by_position(tensors, model_state, head)
    return "position" if by_position and not by_position.find_shape_mismatches(model_state, head) else None


def _has_similar_shapes(tensors: StateDict, model_state: StateDict) -> bool:
    """Return whether the file has nearly all shapes of a network, a quick test that excludes most models."""
    file_shapes, model_shapes = (
        Counter(tensor.shape for name, tensor in state_dict.items() if not is_batch_counter(name))
        for state_dict in (tensors, model_state)
    )
    return (model_shapes - file_shapes).total() <= 4
