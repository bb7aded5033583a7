"""Why a weights file does not fit a network, told so that one sees it: sentence, remedy, and both sides in a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from ftcli.errors import CheckpointError, Table
from ftcli.models.candidates import find_owners
from ftcli.models.fitting import Fit, Tensors, fit_names, fit_order, is_counter, within
from ftcli.models.zoo import list_auxiliaries

_ROWS = 12
_BEFORE = 3  # rows of the table that stand before the first difference


@dataclass(frozen=True)
class Pairing:
    """A network and a file that do not fit. `given` are the file's tensors without the prefix of their names, `head`
    is the path of the network's head, and `architecture` what the file says of itself. `place` begins the message."""

    model: str
    wanted: Tensors
    head: str
    given: Tensors
    architecture: str | None
    place: str


def explain_names(pair: Pairing) -> CheckpointError:
    """The error for tensors that do not find their places by name."""
    wanted, given = pair.wanted, pair.given
    missing = [name for name in wanted if name not in given and not within(name, pair.head) and not is_counter(name)]
    over = [name for name in given if name not in wanted and not within(name, pair.head)]
    if over:
        auxiliaries = list_auxiliaries(pair.model)
        over = [name for name in over if not any(within(name, part) for part in auxiliaries)]
    shared = [name for name in wanted if name in given]
    other = [
        f"{name} {tell_shape(given[name])} instead of {tell_shape(wanted[name])}"
        for name in shared
        if given[name].shape != wanted[name].shape and not within(name, pair.head)
    ]
    matched = sum(given[name].shape == wanted[name].shape for name in shared)
    parts = [f"{matched} of {len(wanted)} tensors match"]
    for what, names in (("missing", missing), ("left over", over), ("of another shape", other)):
        if names:
            parts.append(f"{len(names)} {what}: {list_first(names)}")
    in_order = fit_order(given, wanted, pair.head)
    if in_order and not in_order.find_misshapen(wanted, pair.head):
        remedy = "number and shapes agree in order: match: position would load them"
    else:
        remedy = _find_remedy(pair)
    sentence = f"{pair.place} does not fit {pair.model}: {'; '.join(parts)}; {remedy}"
    return CheckpointError(sentence, table=_compare(pair, by_name=True))


def explain_order(pair: Pairing) -> CheckpointError:
    """The error for tensors that do not find their places by position."""
    wanted, given = pair.wanted, pair.given
    by_name = fit_names(given, wanted, pair.head)
    if isinstance(by_name, Fit) and not by_name.find_misshapen(wanted, pair.head):
        remedy = "names and shapes agree: match: name would load them"
    else:
        remedy = _find_remedy(pair)
    fit = fit_order(given, wanted, pair.head)
    if fit is None:
        sentence = (
            f"{pair.place} has {len(given)} tensors and the network {len(wanted)}; match: position needs as many; "
            f"{remedy}"
        )
    else:
        name = fit.find_misshapen(wanted, pair.head)[0]
        position = list(fit.tensors).index(name)
        sentence = (
            f"{pair.place} does not fit at tensor {position + 1} of {len(given)}: {name} is {tell_shape(wanted[name])} "
            f"in the network and {list(given)[position]} is {tell_shape(fit.tensors[name])} in the file; {remedy}"
        )
    return CheckpointError(sentence, table=_compare(pair, by_name=False))


def tell_shape(tensor: Tensor) -> str:
    """A tensor's shape as it stands in sentences."""
    return f"[{', '.join(map(str, tensor.shape))}]"


def list_first(names: Iterable[str], show: int = 3) -> str:
    """The first of some names, with the number of the rest."""
    listed = list(names)
    more = f" and {len(listed) - show} more" if len(listed) > show else ""
    return ", ".join(listed[:show]) + more


def _find_remedy(pair: Pairing) -> str:
    owners = find_owners(pair.given, pair.architecture, pair.model)
    if not owners:
        return "give weights of this network"
    names = " or ".join(name for name, _ in owners)
    name, match = owners[0]
    setting = f"{name} and match: position" if match == "position" else name
    return f"the file's tensors are those of {names}; set backbone.name: {setting}"


def _compare(pair: Pairing, *, by_name: bool) -> Table:
    """Both sides in order, from shortly before the first difference on. Batch counters, which many files lack, and
    which would then shift all that follows, are passed over."""
    own, theirs = (
        [(name, tell_shape(tensor)) for name, tensor in side.items() if not is_counter(name)]
        for side in (pair.wanted, pair.given)
    )
    rows = list(zip_longest(own, theirs, fillvalue=("-", "-")))
    first = next((index for index, (a, b) in enumerate(rows) if (a != b if by_name else a[1] != b[1])), 0)
    start = max(0, min(first - _BEFORE, len(rows) - _ROWS))
    shown = rows[start : start + _ROWS]
    return Table(
        (">", "network", "shape", "file", "shape"),
        tuple((str(number), *a, *b) for number, (a, b) in enumerate(shown, start + 1)),
        f"tensors {start + 1} to {start + len(shown)} of {len(rows)}, in order, without batch counters",
    )
