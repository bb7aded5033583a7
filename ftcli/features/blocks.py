"""The blocks of a network that an image passes through, one after another."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ftcli.features.passage import Call, Passage

MOST = 36
"""A network of more blocks is told by its stages."""

_DEEPEST = 8
_FOLLOWERS = {f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization", "pooling", "dropout")}


def choose_blocks(model: nn.Module, passage: Passage, head: str) -> tuple[str, ...]:
    """The chain of blocks from the first to the last before the head, at most 36 where the network has such a level.

    A container is divided into its parts if they work one after another, each on what the one before gave and nothing
    passes them by: the network, its stages and its rows of layers, but no residual block and no Inception block. The
    modules of a kind (nn.Sequential apart) are divided alike, and what only strings single layers together is divided
    where it is an nn.Sequential. A part counts if it has weights; the normalization, activation, pooling and dropout
    that follow it at once belong to it, and it goes by the name of the last of them. Its output as the head reads it
    is left out: that is the input of the head. Where there are more, as in ResNet-152, whole containers take the
    place of their parts.
    """
    divider = _Divider(model, passage, head)
    for depth in range(_DEEPEST, -1, -1):
        units = divider.divide(passage.root, depth)
        if len(units) <= MOST:
            break
    return tuple(dict.fromkeys(unit.name for unit in units if unit.gave is None or unit.gave != divider.read))


class _Divider:
    def __init__(self, model: nn.Module, passage: Passage, head: str) -> None:
        self.modules = dict(model.named_modules())
        self.head = head
        calls = _list_calls(passage.root)
        self.read = next((call.given for call in calls if call.name == head), None)
        self.times = Counter(call.name for call in calls)
        self.broken = {type(self.modules[call.name]) for call in calls if not _is_chain(call)} - {nn.Sequential}

    def divide(self, call: Call, depth: int) -> list[Call]:
        """The units within a call, looking `depth` containers down. What is above the head is always divided."""
        above = self._is_above_head(call.name)
        if not above and (depth == 0 or not self._is_divisible(call)):
            return [call]
        units: list[Call] = []
        for place, inner in enumerate(call.inner):
            if self._counts(inner):
                parts = self.divide(inner, depth - (call.name != ""))
                units += [self._extend(call, place)] if parts == [inner] else parts
        return units

    def _extend(self, call: Call, place: int) -> Call:
        """The last of the calls, from a place on, that belong to the unit there."""
        unit = call.inner[place]
        for after in call.inner[place + 1 :]:
            if after.given is None or after.given != unit.gave or not self._follows(after.name):
                break
            unit = after
        return unit

    def _follows(self, name: str) -> bool:
        kind = type(self.modules[name])
        known = any(base.__module__ in _FOLLOWERS for base in kind.__mro__) and "Adaptive" not in kind.__name__
        return known and self.times[name] == 1 and not self._has_weights(name)

    def _is_divisible(self, call: Call) -> bool:
        kind = type(self.modules[call.name])
        parts = [inner for inner in call.inner if self._counts(inner)]
        if kind in self.broken or not _is_chain(call) or not parts:
            return False
        if len(parts) == 1:
            return self._is_divisible(parts[0])
        return issubclass(kind, nn.Sequential) or any(list(self.modules[part.name].children()) for part in parts)

    def _counts(self, call: Call) -> bool:
        return not f"{call.name}.".startswith(f"{self.head}.") and self._has_weights(call.name)

    def _has_weights(self, name: str) -> bool:
        return any(parameter.ndim > 1 for parameter in self.modules[name].parameters())

    def _is_above_head(self, name: str) -> bool:
        return not name or f"{self.head}.".startswith(f"{name}.")


def _list_calls(call: Call) -> list[Call]:
    return [call, *(inner for own in call.inner for inner in _list_calls(own))]


def _is_chain(call: Call) -> bool:
    """Whether each module within works on what the one before gave, and what the last gave is what the whole gives.
    A module without inner calls is one."""
    ends = [inner.gave for inner in call.inner]
    begins = [inner.given for inner in call.inner[1:]] + [call.gave]
    return None not in ends and ends == (begins if ends else [])
