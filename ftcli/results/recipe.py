"""What there is to tell about recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftcli.results.base import Result


@dataclass(frozen=True)
class RecipeSchema(Result):
    """What `ftcli schema` tells: the JSON Schema itself."""

    document: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.document
