"""The blocks of a network that an image passes through, one after another."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ftcli.features.call_graph import CallTrace, ModuleCall

MAX_BLOCKS = 36
"""A network of more blocks is told by its stages."""

_MAX_DEPTH = 8
_ABSORBED_MODULES = {
    f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization", "pooling", "dropout")
}


def list_blocks(model: nn.Module, trace: CallTrace, head: str) -> tuple[str, ...]:
    """The chain of blocks from the first to the last before the head, at most 36 where the network has such a level.

    A container is divided into its parts if they work one after another, each on what the one before gave and nothing
    passes them by: the network, its stages and its rows of layers, but no residual block and no Inception block. The
    modules of a kind (nn.Sequential apart) are divided alike, and what only strings single layers together is divided
    where it is an nn.Sequential. A part counts if it has weights; the normalization, activation, pooling and dropout
    that follow it at once belong to it, and it goes by the name of the last of them. Its output as the head reads it
    is left out: that is the input of the head. Where there are more, as in ResNet-152, whole containers take the
    place of their parts.
    """
    finder = _BlockFinder(model, trace, head)
    for depth in range(_MAX_DEPTH, -1, -1):
        blocks = finder.expand(trace.root, depth)
        if len(blocks) <= MAX_BLOCKS:
            break
    return tuple(
        dict.fromkeys(
            block.name
            for block in blocks
            if block.output_version is None or block.output_version != finder.head_input_version
        )
    )


class _BlockFinder:
    def __init__(self, model: nn.Module, trace: CallTrace, head: str) -> None:
        self.modules = dict(model.named_modules())
        self.head = head
        all_calls = _list_calls(trace.root)
        self.head_input_version = next((call.input_version for call in all_calls if call.name == head), None)
        self.call_counts = Counter(call.name for call in all_calls)
        self.non_chain_types = {type(self.modules[call.name]) for call in all_calls if not _is_chain(call)} - {
            nn.Sequential
        }

    def expand(self, call: ModuleCall, depth: int) -> list[ModuleCall]:
        """The units within a call, looking `depth` containers down. What is above the head is always divided."""
        contains_head = self._contains_head(call.name)
        if not contains_head and (depth == 0 or not self._is_expandable(call)):
            return [call]
        blocks: list[ModuleCall] = []
        for index, child in enumerate(call.children):
            if self._is_candidate(child):
                parts = self.expand(child, depth - (call.name != ""))
                blocks += [self._absorb_following(call, index)] if parts == [child] else parts
        return blocks

    def _absorb_following(self, call: ModuleCall, index: int) -> ModuleCall:
        """The last of the calls, from a place on, that belong to the unit there."""
        block = call.children[index]
        for next_call in call.children[index + 1 :]:
            if (
                next_call.input_version is None
                or next_call.input_version != block.output_version
                or not self._is_absorbed(next_call.name)
            ):
                break
            block = next_call
        return block

    def _is_absorbed(self, name: str) -> bool:
        module_type = type(self.modules[name])
        is_absorbable_type = (
            any(base.__module__ in _ABSORBED_MODULES for base in module_type.__mro__)
            and "Adaptive" not in module_type.__name__
        )
        return is_absorbable_type and self.call_counts[name] == 1 and not self._has_weights(name)

    def _is_expandable(self, call: ModuleCall) -> bool:
        module_type = type(self.modules[call.name])
        parts = [child for child in call.children if self._is_candidate(child)]
        if module_type in self.non_chain_types or not _is_chain(call) or not parts:
            return False
        if len(parts) == 1:
            return self._is_expandable(parts[0])
        return issubclass(module_type, nn.Sequential) or any(list(self.modules[part.name].children()) for part in parts)

    def _is_candidate(self, call: ModuleCall) -> bool:
        return not f"{call.name}.".startswith(f"{self.head}.") and self._has_weights(call.name)

    def _has_weights(self, name: str) -> bool:
        return any(parameter.ndim > 1 for parameter in self.modules[name].parameters())

    def _contains_head(self, name: str) -> bool:
        return not name or f"{self.head}.".startswith(f"{name}.")


def _list_calls(call: ModuleCall) -> list[ModuleCall]:
    return [call, *(nested for child in call.children for nested in _list_calls(child))]


def _is_chain(call: ModuleCall) -> bool:
    """Whether each module within works on what the one before gave, and what the last gave is what the whole gives.
    A module without inner calls is one."""
    outputs = [child.output_version for child in call.children]
    next_inputs = [child.input_version for child in call.children[1:]] + [call.output_version]
    return None not in outputs and outputs == (next_inputs if outputs else [])
