"""Tests of data.root, data.group and data.download."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.errors import RecipeError
from ftcli.recipe.loading import dump_recipe, read_recipe, recipe_from_dict

RECIPE = """\
name: r
data:
  {lines}
backbone: {{name: resnet18}}
stages: [{{name: all, freeze: none, epochs: 1, optimizer: {{name: sgd, lr: 0.1}}}}]
"""


def write_recipe(folder: Path, lines: str) -> Path:
    (folder / "r.yaml").write_text(RECIPE.format(lines=lines))
    return folder / "r.yaml"


def test_read_recipe_accepts_one_root_or_several(tmp_path: Path) -> None:
    assert read_recipe(write_recipe(tmp_path, "root: a")).recipe.data.roots == ("a",)
    recipe = read_recipe(write_recipe(tmp_path, "root: [a, b.csv]")).recipe
    assert recipe.data.roots == recipe.data.root == ("a", "b.csv")
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "dumped.yaml").recipe == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json"), "x.pt").recipe == recipe
    assert read_recipe(write_recipe(tmp_path, "root: a"), ["data.root=[b, c]"]).recipe.data.roots == ("b", "c")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("root: 3", "3:9: data.root: 3 is not a string; put it in quotes if it is meant as a name"),
        ("root: []", "3:9: data.root: has 0 items; give at least 1"),
        ("root: [a, 3]", "3:13: data.root.1: 3 is not a string; put it in quotes if it is meant as a name"),
        ("root: [a, b, a]", '3:9: data.root: ["a", "b", "a"] contains \'a\' twice; remove one of them'),
        (
            "root: a\n  group: m[0-9]+",
            "4:10: data.group: 'm[0-9]+' has 0 capturing groups; give it exactly one, as in ^(m[0-9]+)_",
        ),
        (
            "root: a\n  group: (m)(n)",
            "4:10: data.group: '(m)(n)' has 2 capturing groups; give it exactly one, as in ^(m[0-9]+)_",
        ),
        (
            "root: a\n  group: (m",
            "4:10: data.group: '(m' is not a regular expression (missing ), unterminated subpattern at position 0); "
            "write one such as ^(m[0-9]+)_",
        ),
        *(
            (
                f"root: {root}\n  download: solar-cells",
                "3:3: data: download creates a folder, and root is not a single folder; give one folder as root, or "
                "remove download",
            )
            for root in ("[a, b]", "cells.CSV")
        ),
    ],
)
def test_read_recipe_rejects_invalid_root_and_group(tmp_path: Path, lines: str, message: str) -> None:
    path = write_recipe(tmp_path, lines)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert error.value.messages == (f"{path}:{message}",)
