"""Tests of the recipe reference: it is up to date and complete, and every key has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generator.__main__ import main
from docs.generator.key_tests import KeyTest, find_key_tests
from docs.generator.recipe import EXAMPLE_PATH, ROOT, list_key_paths, render_documents
from docs.generator.schema_reader import SchemaReader, list_keys
from ftcli.data.transforms import PRESETS
from ftcli.planning import plan_recipe
from ftcli.recipe.json_schema import build_json_schema
from ftcli.recipe.loading import read_recipe

DOCUMENTS = render_documents()
PAGE = DOCUMENTS["docs/recipe.md"]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_documents_are_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == DOCUMENTS[path], "run: python -m docs.generator recipe"


def test_every_key_is_covered() -> None:
    key_paths, key_tests = set(list_key_paths(SchemaReader(build_json_schema()))), find_key_tests(ROOT)
    assert sorted(key_paths - key_tests.keys()) == [], "keys without a test"
    assert sorted(key_tests.keys() - key_paths) == [], "marks with an unknown key"


def test_find_key_tests_finds_marks(tmp_path: Path) -> None:
    (tmp_path / "tests/area").mkdir(parents=True)
    (tmp_path / "tests/area/test_it.py").write_text(
        "import pytest\n"
        '@pytest.mark.covers("seed", "data.val")\n'
        "def test_one(): ...\n"
        '@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.covers("name"))])\n'
        "def test_two(x): ...\n"
        "def test_three(): ...\n"
    )
    one, two = KeyTest("tests/area/test_it.py", "test_one"), KeyTest("tests/area/test_it.py", "test_two")
    assert find_key_tests(tmp_path) == {"seed": [one], "data.val": [one], "name": [two]}


def test_schema_reader_describes_allowed_values() -> None:
    reader = SchemaReader(build_json_schema())
    *sections, head_fit = (reader.read_top_level(), *reader.read_sections())
    keys = {key.key_path: key for section in sections for key in list_keys(section)}
    assert head_fit.name == "stages with fit"
    assert [(key.key_path, key.allowed) for key in head_fit.keys[1:]] == [
        ("stages.freeze", "`backbone`"),
        ("stages.fit", "`logistic_regression`"),
    ]
    assert keys["seed"].allowed == "a whole number of at least 0 and below 2^63"
    assert keys["data.num_workers"].allowed == "a whole number from 0 to 256, or `null`"
    assert keys["stages.freeze"].allowed == "`backbone` or `none`, or a list, each text, or a mapping with `through`"
    assert keys["stages.schedule"].allowed == (
        "a mapping with a name and settings: [`constant`](#constant), [`step`](#step), [`cosine`](#cosine) or "
        "[`one_cycle`](#one_cycle); `constant`, `cosine` or `one_cycle` can be given as a name alone"
    )
    assert (keys["stages.schedule"].default, keys["head"].default, keys["name"].default) == ("constant", "{}", None)
    assert keys["stages.optimizer.betas"].allowed == "a list of 2, each a number of at least 0 and below 1"
    assert not any(keys[key_path].is_leaf for key_path in ("data", "head", "stages", "stages.early_stopping"))


def test_page_lists_presets() -> None:
    for preset, transforms in PRESETS.items():
        (row,) = re.findall(rf"^\| `{preset}` \| `(\[.*\])` \|$", PAGE, re.MULTILINE)
        assert re.findall(r"name: (\w+)", row) == [transform.name for transform in transforms]
    assert "| `light` | `[{name: random_resized_crop, scale: [0.8, 1]}, {name: random_horizontal_flip}]` |" in PAGE


def test_example_accepts_shown_overrides() -> None:
    assert EXAMPLE_PATH.read_text(encoding="utf-8") in PAGE
    shown = re.findall(r"--set ('[^']+'|\S+)", PAGE.split("```sh\n")[1].split("```")[0])
    assert len(shown) == 6
    for override in [None, *(text.strip("'") for text in shown)]:
        plan = plan_recipe(read_recipe(EXAMPLE_PATH, (override,) if override else ()))
        assert [stage.stage.name for stage in plan.stages] == ["head", "upper"]


def test_links_resolve() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    for name in ("docs/recipe.md", "docs/recipe-tests.md"):
        for target in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[name]):
            if target.startswith("#"):
                assert target[1:] in anchors, target
            else:
                assert (ROOT / "docs" / target).exists(), target


def test_main_rejects_unknown_document() -> None:
    with pytest.raises(SystemExit, match=r"^unknown document 'recipes'; known: models, recipe$"):
        main(["recipes"])
