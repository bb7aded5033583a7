"""Tests of docs/models.md against the computed rows."""

from __future__ import annotations

import re

import pytest
import torchvision

from docs.generator.models import PATH, SAMPLE, analyze_model, render_line, render_page, render_row
from ftcli.models.factory import list_torchvision_models
from tests.conftest import CONFIGS

PAGE = (CONFIGS.parent / PATH).read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if re.match(r"(\| |- )`", line)]


def test_models_page_lists_every_model() -> None:
    lines_by_name = {re.findall(r"`([^`]+)`", line)[0]: line for line in LINES}
    assert len(lines_by_name) == len(LINES)
    assert [name for name in lines_by_name if not name.startswith("timm/")] == list(list_torchvision_models())
    assert set(lines_by_name) == {*list_torchvision_models(), *SAMPLE}
    assert render_page(LINES) == PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", list_torchvision_models())
def test_models_page_matches_torchvision(name: str) -> None:
    row = analyze_model(name)
    assert render_row(row) in LINES
    assert row.is_trainable
    assert row.head.out_features == 1000
    assert row.head_cut is not None
    assert len(row.head_cut.boundary) == 1
    assert row.middle_cut is not None
    assert not row.middle_cut.is_uncut
    weights_meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert row.parameters <= weights_meta["num_params"]  # without auxiliary heads
    assert row.multiply_adds / 1e9 == pytest.approx(weights_meta["_ops"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_models_page_matches_timm(name: str) -> None:
    assert render_line(name) in LINES
