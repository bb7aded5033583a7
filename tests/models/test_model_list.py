from __future__ import annotations

import importlib.util

import pytest

from ftcli.errors import RecipeError
from ftcli.models import model_list
from ftcli.models.factory import create_model, list_timm_models, list_torchvision_models
from ftcli.models.model_list import build_model_list, is_glob
from ftcli.models.summary import count_parameters, summarize
from ftcli.results import ModelEntry, NullReporter, Progress
from tests.conftest import LibraryLog, RecordingReporter


def _list(glob: str | None, sort_by: str = "name") -> tuple[ModelEntry, ...]:
    return build_model_list(glob, sort_by, "inspect", NullReporter()).models


def test_is_glob_distinguishes_globs_from_names() -> None:
    assert [is_glob(name) for name in ("resnet*", "resnet1?", "resnet[15]*", "resnet18")] == [True, True, True, False]


def test_build_model_list_uses_published_torchvision_numbers() -> None:
    (row,) = _list("resnet5*")
    assert row == ModelEntry("resnet50", 25_557_032, 4_089_000_000, 224, 80.858, "IMAGENET1K_V2")
    assert {row.name: row.image_size for row in _list("vit_?_1[46]")} == {
        "vit_b_16": 224,
        "vit_h_14": 518,
        "vit_l_16": 224,
    }


def test_build_model_list_without_glob_creates_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(model_list, "create_model")
    rows = _list(None)
    assert [row.name for row in rows] == [*list_torchvision_models(), *list_timm_models()]
    assert all(row.parameters and row.multiply_adds and row.accuracy for row in rows[:80])
    lite = next(row for row in rows if row.name == "timm/efficientnet_lite0")
    assert lite == ModelEntry("timm/efficientnet_lite0", None, None, 224, None, "ra_in1k")


def test_build_model_list_counts_few_timm_models() -> None:
    reporter = RecordingReporter()
    rows = build_model_list("timm/efficientnet_lite[01]", "name", "inspect", reporter).models
    assert [row.name for row in rows] == ["timm/efficientnet_lite0", "timm/efficientnet_lite1"]
    for row in rows:
        network = create_model(row.name, meta=True)
        assert row.parameters == count_parameters(network)
        assert row.multiply_adds == summarize(network, row.image_size).multiply_adds
    assert reporter.progress == [Progress("counting", 1, 2), Progress("counting", 2, 2)]


def test_build_model_list_does_not_count_many_timm_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(model_list, "create_model")
    rows = _list("timm/resnet*")
    assert len(rows) > 50
    assert all((row.parameters, row.multiply_adds, row.accuracy) == (None, None, None) for row in rows)


def test_build_model_list_warns_of_model_that_cannot_be_created(
    monkeypatch: pytest.MonkeyPatch, log: LibraryLog
) -> None:
    def fail(name: str, meta: bool, image_size: int, location: str) -> None:
        raise RecipeError(f"{location}: {name} cannot be created (no reason); choose another model")

    monkeypatch.setattr(model_list, "create_model", fail)
    (row,) = build_model_list("timm/efficientnet_lite0*", "name", "inspect", NullReporter()).models
    assert row.parameters is None
    assert log.warnings == ["inspect: timm/efficientnet_lite0 cannot be created (no reason); choose another model"]


@pytest.mark.parametrize(
    ("sort_by", "names"),
    [
        ("name", ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]),
        ("size", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]),
        ("speed", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]),
        ("accuracy", ["resnet152", "resnet101", "resnet50", "resnet34", "resnet18"]),
    ],
)
def test_build_model_list_sorts(sort_by: str, names: list[str]) -> None:
    assert [row.name for row in _list("resnet*", sort_by)] == names


def test_build_model_list_sorts_by_size_or_speed() -> None:
    assert [row.name for row in _list("s[qh]*", "size")[:3]] == ["squeezenet1_1", "squeezenet1_0", "shufflenet_v2_x0_5"]
    assert _list("s[qh]*", "speed")[0].name == "shufflenet_v2_x0_5"


@pytest.mark.parametrize("sort_by", ["size", "speed", "accuracy"])
def test_build_model_list_sorts_unknown_last(sort_by: str) -> None:
    rows = _list("*resnet*", sort_by)
    assert not any(row.name.startswith("timm/") for row in rows[:7])
    assert all(row.name.startswith("timm/") for row in rows[7:])


def test_build_model_list_imports_timm_only_if_glob_can_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list, "list_timm_models", lambda: pytest.fail("timm was imported"))
    assert len(_list("resnet*")) == 5


def test_build_model_list_suggests_names_for_unmatched_glob() -> None:
    with pytest.raises(RecipeError) as error:
        _list("resnot*")
    assert str(error.value) == (
        "inspect: no model matches 'resnot*'; did you mean 'resnet50' or 'resnet34' or 'resnet18'?"
    )


def test_build_model_list_rejects_unknown_sort_key() -> None:
    with pytest.raises(RecipeError) as error:
        _list("resnet*", "price")
    assert str(error.value) == "--sort: unknown order 'price'; known: accuracy, name, size, speed"


def test_build_model_list_without_timm_names_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(RecipeError) as error:
        _list("timm/*lite*")
    assert (
        str(error.value)
        == "inspect: 'timm/*lite*' needs the package timm; run pip install '.[timm]' in the ftcli repository"
    )
