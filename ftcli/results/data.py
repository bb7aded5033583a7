"""What was found out about images, or made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ftcli.results.base import Result


@dataclass(frozen=True)
class DownloadResult(Result):
    """What `ftcli data download` made: image counts by split and class."""

    name: str
    root: Path
    images: int
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
