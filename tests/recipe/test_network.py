"""Tests of backbone.weights and backbone.sha256."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.errors import RecipeError
from ftcli.recipe.loading import backbone_from_options, read_recipe
from ftcli.recipe.schema import Backbone

RECIPE = """\
name: x
data: {root: data}
backbone: {name: resnet18, SETTINGS}
stages: [{name: all, freeze: none, epochs: 1, optimizer: {name: sgd, lr: 0.1}}]
"""
DIGEST = "Ab" * 32


def _recipe_errors(folder: Path, settings: str) -> list[str]:
    path = folder / "r.yaml"
    path.write_text(RECIPE.replace("SETTINGS", settings))
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    return [message.removeprefix(f"{path}:") for message in error.value.messages]


def test_sha256_is_lowercased(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("SETTINGS", f"weights: https://example.org/w.pth, sha256: {DIGEST}"))
    assert read_recipe(path).recipe.backbone.sha256 == "ab" * 32


@pytest.mark.parametrize("url", ["https://example.org/w.pth", "HTTP://example.org/w.pth"])
def test_weights_url_requires_sha256(tmp_path: Path, url: str) -> None:
    assert _recipe_errors(tmp_path, f"weights: '{url}'") == [
        "3:11: backbone: weights from a URL require sha256; give the SHA-256 that the publisher states, or that "
        "`sha256sum FILE` prints for a copy that you trust"
    ]


@pytest.mark.parametrize("value", ["ab", "g" * 64, "a" * 65])
def test_sha256_rejects_invalid_digest(tmp_path: Path, value: str) -> None:
    shown = repr(value) if len(value) < 60 else repr(value)[:59] + "…"
    assert _recipe_errors(tmp_path, f"sha256: {value}") == [
        f"3:36: backbone.sha256: {shown} is not a SHA-256; give the 64 hexadecimal digits that `sha256sum FILE` prints"
    ]


def test_sha256_rejects_weights_none(tmp_path: Path) -> None:
    assert _recipe_errors(tmp_path, f"weights: none, sha256: {DIGEST}") == [
        "3:11: backbone: sha256 has no effect with weights: none; remove it"
    ]


def test_backbone_from_options_validates() -> None:
    assert backbone_from_options("resnet18", "w.pth", None, None) == Backbone(
        name="resnet18", weights="w.pth", match="name"
    )
    with pytest.raises(RecipeError) as error:
        backbone_from_options("resnet18", "w.pth", "order", "x")
    assert error.value.messages == (
        "--match: 'order' is not one of name, position",
        "--sha256: 'x' is not a SHA-256; give the 64 hexadecimal digits that `sha256sum FILE` prints",
    )
    with pytest.raises(RecipeError) as error:
        backbone_from_options("resnet18", "https://example.org/w.pth", None, None)
    assert error.value.messages == (
        "--weights: weights from a URL require sha256; give the SHA-256 that the publisher states, or that "
        "`sha256sum FILE` prints for a copy that you trust",
    )
