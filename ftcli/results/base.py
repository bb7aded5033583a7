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
        fields_by_name: dict[str, Any] = _to_json_value(
            {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        )
        return fields_by_name


def _to_json_value(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, dict):
        return {key: _to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item) for item in value]
    return value
