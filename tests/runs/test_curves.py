"""The picture of a training's curves."""

from __future__ import annotations

from ftcli.results import EpochMetrics
from ftcli.runs.curves import render_curves


def _render(stage: str) -> bytes:
    rows = [
        EpochMetrics(stage, n, None if n == 0 else 0.5, None if n == 0 else 0.6, 0.7, 0.5, 0.1, 1, 1) for n in (0, 1)
    ]
    return render_curves(rows)


def test_render_curves_labels_stages_in_any_script() -> None:
    pictures = {_render(stage) for stage in ("head", "头部", "الكل", "कदम", "x" * 100)}
    assert len(pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
