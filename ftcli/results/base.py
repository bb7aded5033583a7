"""What every result has in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


class Result:
    """Base of everything that a command returns."""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types; paths are absolute text."""
        assert dataclasses.is_dataclass(self)
        plain: dict[str, Any] = _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
