"""docs/models.md is what the code computes, row by row."""

from __future__ import annotations

import re

import pytest
import torchvision

from docs.generator.models import PATH, SAMPLE, describe_model, render_line, render_page, render_row
from ftcli.models.zoo import list_models
from tests.conftest import CONFIGS

PAGE = (CONFIGS.parent / PATH).read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if re.match(r"(\| |- )`", line)]


def test_the_page_has_every_model_and_nothing_that_the_generator_does_not_write() -> None:
    named = {re.findall(r"`([^`]+)`", line)[0]: line for line in LINES}
    assert len(named) == len(LINES)
    assert [name for name in named if not name.startswith("timm/")] == list(list_models())
    assert set(named) == {*list_models(), *SAMPLE}
    assert render_page(LINES) == PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_a_torchvision_classifier_is_what_the_page_and_its_publisher_say(name: str) -> None:
    row = describe_model(name)
    assert render_row(row) in LINES
    assert row.trains
    assert row.head.out_features == 1000
    assert row.at_head is not None
    assert len(row.at_head.crossing) == 1
    assert row.in_middle is not None
    assert not row.in_middle.whole
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert row.parameters <= published["num_params"]  # auxiliary heads are off
    assert row.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_timm_classifier_is_what_the_page_says(name: str) -> None:
    assert render_line(name) in LINES
