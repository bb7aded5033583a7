"""docs/models.md is what the code computes, row by row."""

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
    named = {re.findall(r"`([^`]+)`", line)[0]: line for line in LINES}
    assert len(named) == len(LINES)
    assert [name for name in named if not name.startswith("timm/")] == list(list_torchvision_models())
    assert set(named) == {*list_torchvision_models(), *SAMPLE}
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
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert row.parameters <= published["num_params"]  # auxiliary heads are off
    assert row.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_models_page_matches_timm(name: str) -> None:
    assert render_line(name) in LINES
