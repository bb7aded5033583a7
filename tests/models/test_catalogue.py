from __future__ import annotations

import importlib.util

import pytest

from ftcli.errors import RecipeError
from ftcli.models import catalogue
from ftcli.models.catalogue import is_glob, list_catalogue
from ftcli.models.inspection import inspect_model
from ftcli.models.zoo import list_models, list_timm_models
from ftcli.results import ModelRow, Progress, Silent


class _Watcher(Silent):
    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.warned: list[str] = []

    def advance(self, progress: Progress) -> None:
        self.seen.append(progress)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def _list(glob: str | None, order: str = "name") -> tuple[ModelRow, ...]:
    return list_catalogue(glob, order, "inspect", Silent()).models


def test_a_glob_is_told_from_a_name() -> None:
    assert [is_glob(name) for name in ("resnet*", "resnet1?", "resnet[15]*", "resnet18")] == [True, True, True, False]


def test_torchvision_is_listed_with_what_it_publishes() -> None:
    (row,) = _list("resnet5*")
    assert row == ModelRow("resnet50", 25_557_032, 4_089_000_000, 224, 80.858, "IMAGENET1K_V2")
    assert {row.name: row.image_size for row in _list("vit_?_1[46]")} == {
        "vit_b_16": 224,
        "vit_h_14": 518,
        "vit_l_16": 224,
    }


def test_without_a_glob_all_are_listed_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(catalogue, "build_network")
    rows = _list(None)
    assert [row.name for row in rows] == [*list_models(), *list_timm_models()]
    assert all(row.parameters and row.multiply_adds and row.accuracy for row in rows[:80])
    lite = next(row for row in rows if row.name == "timm/efficientnet_lite0")
    assert lite == ModelRow("timm/efficientnet_lite0", None, None, 224, None, "ra_in1k")


def test_few_of_timm_are_counted_as_an_inspection_counts_them() -> None:
    watcher = _Watcher()
    rows = list_catalogue("timm/efficientnet_lite[01]", "name", "inspect", watcher).models
    assert [row.name for row in rows] == ["timm/efficientnet_lite0", "timm/efficientnet_lite1"]
    for row in rows:
        inspection = inspect_model(row.name, 1)
        assert (row.parameters, row.multiply_adds) == (inspection.parameters, inspection.multiply_adds)
    assert watcher.seen == [Progress("counting", 1, 2), Progress("counting", 2, 2)]


def test_many_of_timm_are_listed_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(catalogue, "build_network")
    rows = _list("timm/resnet*")
    assert len(rows) > 50
    assert all((row.parameters, row.multiply_adds, row.accuracy) == (None, None, None) for row in rows)


def test_a_network_that_cannot_be_counted_is_told_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, _meta: bool, _size: int, where: str) -> None:
        raise RecipeError(f"{where}: {name} cannot be made (no reason); choose another model")

    monkeypatch.setattr(catalogue, "build_network", refuse)
    watcher = _Watcher()
    (row,) = list_catalogue("timm/efficientnet_lite0*", "name", "inspect", watcher).models
    assert row.parameters is None
    assert watcher.warned == ["inspect: timm/efficientnet_lite0 cannot be made (no reason); choose another model"]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("name", ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]),
        ("size", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]),
        ("speed", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]),
        ("accuracy", ["resnet152", "resnet101", "resnet50", "resnet34", "resnet18"]),
    ],
)
def test_orders(order: str, names: list[str]) -> None:
    assert [row.name for row in _list("resnet*", order)] == names


def test_size_and_speed_are_different_orders() -> None:
    assert [row.name for row in _list("s[qh]*", "size")[:3]] == ["squeezenet1_1", "squeezenet1_0", "shufflenet_v2_x0_5"]
    assert _list("s[qh]*", "speed")[0].name == "shufflenet_v2_x0_5"


@pytest.mark.parametrize("order", ["size", "speed", "accuracy"])
def test_what_is_unknown_comes_last(order: str) -> None:
    rows = _list("*resnet*", order)
    assert not any(row.name.startswith("timm/") for row in rows[:7])
    assert all(row.name.startswith("timm/") for row in rows[7:])


def test_a_glob_that_cannot_match_timm_does_not_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "list_timm_models", lambda: pytest.fail("timm was loaded"))
    assert len(_list("resnet*")) == 5


def test_a_glob_without_a_match_is_told_with_near_names() -> None:
    with pytest.raises(RecipeError) as error:
        _list("resnot*")
    assert str(error.value) == (
        "inspect: no model matches 'resnot*'; did you mean 'resnet50' or 'resnet34' or 'resnet18'?"
    )


def test_an_unknown_order_is_told() -> None:
    with pytest.raises(RecipeError) as error:
        _list("resnet*", "price")
    assert str(error.value) == "--sort: models are in no order called 'price'; known: accuracy, name, size, speed"


def test_a_glob_for_timm_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(RecipeError) as error:
        _list("timm/*lite*")
    assert str(error.value) == "inspect: 'timm/*lite*' needs timm, which is not installed; pip install 'ftcli[timm]'"
