"""Why a weights file does not fit a network, told so that one sees it: sentence, remedy, and both sides in a table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from ftcli.errors import CheckpointError, ErrorTable, format_list
from ftcli.models.factory import list_aux_heads
from ftcli.models.pretrained.guess_architecture import guess_architecture
from ftcli.models.pretrained.state_dict_matching import (
    Match,
    StateDict,
    is_batch_counter,
    is_inside,
    match_by_name,
    match_by_position,
)

_NUM_TABLE_ROWS = 12
_NUM_ROWS_BEFORE = 3  # rows of the table that stand before the first difference


@dataclass(frozen=True)
class MatchContext:
    """A network and a file that do not fit. `given` are the file's tensors without the prefix of their names, `head`
    is the path of the network's head, and `architecture` what the file says of itself. `place` begins the message."""

    model: str
    model_state: StateDict
    head: str
    file_state: StateDict
    architecture: str | None
    location: str


def name_mismatch_error(context: MatchContext) -> CheckpointError:
    """The error for tensors that do not find their places by name."""
    model_state, file_state = context.model_state, context.file_state
    missing = [
        name
        for name in model_state
        if name not in file_state and not is_inside(name, context.head) and not is_batch_counter(name)
    ]
    unexpected = [name for name in file_state if name not in model_state and not is_inside(name, context.head)]
    if unexpected:
        aux_heads = list_aux_heads(context.model)
        unexpected = [name for name in unexpected if not any(is_inside(name, part) for part in aux_heads)]
    shared = [name for name in model_state if name in file_state]
    wrong_shapes = [
        f"{name} {format_shape(file_state[name])} instead of {format_shape(model_state[name])}"
        for name in shared
        if file_state[name].shape != model_state[name].shape and not is_inside(name, context.head)
    ]
    num_matched = sum(file_state[name].shape == model_state[name].shape for name in shared)
    parts = [f"{num_matched} of {len(model_state)} tensors match"]
    for kind, names in (("missing", missing), ("left over", unexpected), ("of another shape", wrong_shapes)):
        if names:
            parts.append(f"{len(names)} {kind}: {format_list(names, 3)}")
    by_position = match_by_position(file_state, model_state, context.head)
    if by_position and not by_position.find_shape_mismatches(model_state, context.head):
        remedy = "number and shapes agree in order: match: position would load them"
    else:
        remedy = _suggest_fix(context)
    message = f"{context.location} does not fit {context.model}: {'; '.join(parts)}; {remedy}"
    return CheckpointError(message, table=_comparison_table(context, by_name=True))


def position_mismatch_error(context: MatchContext) -> CheckpointError:
    """The error for tensors that do not find their places by position."""
    model_state, file_state = context.model_state, context.file_state
    by_name = match_by_name(file_state, model_state, context.head)
    if isinstance(by_name, Match) and not by_name.find_shape_mismatches(model_state, context.head):
        remedy = "names and shapes agree: match: name would load them"
    else:
        remedy = _suggest_fix(context)
    match = match_by_position(file_state, model_state, context.head)
    if match is None:
        message = (
            f"{context.location} has {len(file_state)} tensors and the network {len(model_state)}; match: position needs as many; "
            f"{remedy}"
        )
    else:
        name = match.find_shape_mismatches(model_state, context.head)[0]
        position = list(match.tensors).index(name)
        message = (
            f"{context.location} does not fit at tensor {position + 1} of {len(file_state)}: {name} is {format_shape(model_state[name])} "
            f"in the network and {list(file_state)[position]} is {format_shape(match.tensors[name])} in the file; {remedy}"
        )
    return CheckpointError(message, table=_comparison_table(context, by_name=False))


def format_shape(tensor: Tensor) -> str:
    """A tensor's shape as it stands in sentences."""
    return f"[{', '.join(map(str, tensor.shape))}]"


def _suggest_fix(context: MatchContext) -> str:
    guesses = guess_architecture(context.file_state, context.architecture, context.model)
    if not guesses:
        return "give weights of this network"
    names = " or ".join(name for name, _ in guesses)
    name, match = guesses[0]
    setting = f"{name} and match: position" if match == "position" else name
    return f"the file's tensors are those of {names}; set backbone.name: {setting}"


def _comparison_table(context: MatchContext, *, by_name: bool) -> ErrorTable:
    """Both sides in order, from shortly before the first difference on. Batch counters, which many files lack, and
    which would then shift all that follows, are passed over."""
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
