"""The picture of a training's curves."""

from __future__ import annotations

from ftcli.results import EpochRow
from ftcli.runs.curves import draw_curves


def _draw(stage: str) -> bytes:
    rows = [EpochRow(stage, n, None if n == 0 else 0.5, None if n == 0 else 0.6, 0.7, 0.5, 0.1, 1, 1) for n in (0, 1)]
    return draw_curves(rows)


def test_a_stage_is_named_in_any_script_without_a_warning() -> None:
    pictures = {_draw(stage) for stage in ("head", "头部", "الكل", "कदम", "x" * 100)}
    assert len(pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
