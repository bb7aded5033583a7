"""Base class of the results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


class Result:
    """Base of every dataclass that a command returns."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; paths become absolute strings."""
        assert dataclasses.is_dataclass(self)
        fields_by_name: dict[str, Any] = _to_json_value(
            {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
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
