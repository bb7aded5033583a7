"""Forward hooks that are removed at the end of a context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_hooks(
    model: nn.Module,
    names: Iterable[str],
    on_input: Callable[[str, tuple[Any, ...]], object] | None = None,
    on_output: Callable[[str, Any], object] | None = None,
) -> Iterator[None]:
    """Call `on_input(name, inputs)` before and `on_output(name, output)` after each call of the named modules.

    The results of the functions are ignored; torch would take those of a hook as the module's input or output.
    """
    with ExitStack() as hooks:
        for name in dict.fromkeys(names):
            module = model.get_submodule(name)
            if on_input is not None:

                def before(_: nn.Module, inputs: tuple[Any, ...], *, name: str = name) -> None:
                    on_input(name, inputs)

                hooks.enter_context(module.register_forward_pre_hook(before))
            if on_output is not None:

                def after(_: nn.Module, _inputs: tuple[Any, ...], output: Any, *, name: str = name) -> None:
                    on_output(name, output)

                hooks.enter_context(module.register_forward_hook(after))
        yield
