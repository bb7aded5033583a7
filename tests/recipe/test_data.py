"""The keys below data that say where the images are and what stays together."""

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


def write(folder: Path, lines: str) -> Path:
    (folder / "r.yaml").write_text(RECIPE.format(lines=lines))
    return folder / "r.yaml"


def test_read_recipe_accepts_one_root_or_several(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "root: a")).recipe.data.roots == ("a",)
    recipe = read_recipe(write(tmp_path, "root: [a, b.csv]")).recipe
    assert recipe.data.roots == recipe.data.root == ("a", "b.csv")
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "dumped.yaml").recipe == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json"), "x.pt").recipe == recipe
    assert read_recipe(write(tmp_path, "root: a"), ["data.root=[b, c]"]).recipe.data.roots == ("b", "c")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("root: 3", "3:9: data.root: 3 is not text; put it in quotes if it is meant as a name"),
        ("root: []", "3:9: data.root: has 0 items; give at least 1"),
        ("root: [a, 3]", "3:13: data.root.1: 3 is not text; put it in quotes if it is meant as a name"),
        ("root: [a, b, a]", '3:9: data.root: ["a", "b", "a"]: \'a\' stands twice'),
        (
            "root: a\n  group: m[0-9]+",
            "4:10: data.group: 'm[0-9]+': has 0 pairs of brackets that match; give it one, as in ^(m[0-9]+)_",
        ),
        (
            "root: a\n  group: (m)(n)",
            "4:10: data.group: '(m)(n)': has 2 pairs of brackets that match; give it one, as in ^(m[0-9]+)_",
        ),
        (
            "root: a\n  group: (m",
            "4:10: data.group: '(m': is no regular expression (missing ), unterminated subpattern at position 0); "
            "write one such as ^(m[0-9]+)_",
        ),
        *(
            (
                f"root: {root}\n  download: solar-cells",
                "3:3: data: fetch makes one folder, so root must name one, no manifest and no list; mend root or fetch",
            )
            for root in ("[a, b]", "cells.CSV")
        ),
    ],
)
def test_read_recipe_rejects_invalid_root_and_group(tmp_path: Path, lines: str, sentence: str) -> None:
    path = write(tmp_path, lines)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert error.value.messages == (f"{path}:{sentence}",)
