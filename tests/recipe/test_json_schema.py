"""Tests of the JSON Schema of recipes: it accepts and rejects the same single values as the schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from ftcli.recipe.json_schema import build_json_schema
from ftcli.recipe.loading import dump_recipe, read_recipe
from ftcli.recipe.parsing import parse_yaml
from tests.recipe.test_loading import INVALID_RECIPES, RECIPE

ROOT = Path(__file__).parents[2]
SCHEMA = build_json_schema()
CROSS_VALUE_ERRORS = (
    "nesterov requires a momentum above 0; set momentum",
    "is in the wrong order; give the smaller number first",
    "two stages are named 'head'; rename one of them",
    "resize_size has no effect with resize: pad; remove it",
    "resize_size requires image_size; add it",
    "prints for a copy that you trust",
    "sha256 has no effect with weights: none; remove it",
)
"""Errors that depend on several values, which JSON Schema cannot express."""


def is_valid(text: str) -> bool:
    data = parse_yaml(text, "r.yaml").data
    results = [validator(SCHEMA).is_valid(data) for validator in (Draft202012Validator, Draft7Validator)]
    assert results[0] == results[1]
    return results[0]


def replace(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new)


def walk(node: Any) -> list[dict[str, Any]]:
    """Return all mappings of a JSON document."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [*([node] if isinstance(node, dict) else []), *(node for item in inner for node in walk(item))]


def test_json_schema_is_valid() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "ftcli recipe"
    Draft202012Validator.check_schema(SCHEMA)
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_json_schema_accepts_shipped_recipes(path: Path) -> None:
    assert is_valid(path.read_text())
    assert is_valid(dump_recipe(read_recipe(path).recipe))


def test_json_schema_accepts_recipe_of_documents() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE | re.DOTALL)
    assert is_valid(block)


@pytest.mark.parametrize(("old", "new", "message"), INVALID_RECIPES)
def test_json_schema_rejects_invalid_recipes(old: str, new: str, message: str) -> None:
    is_accepted = message.endswith(CROSS_VALUE_ERRORS) or ": nan is " in message  # JSON has no NaN
    assert is_valid(replace(old, new)) is is_accepted


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("freeze: none", "freeze: [conv1, 'layer[12]']"),
        ("freeze: none", "freeze: {through: layer2}"),
        ("freeze: none", "freeze: none\n    schedule: cosine"),
        ("freeze: none", "freeze: none\n    schedule: {name: step, step_size: 2}"),
        ("freeze: none", "freeze: none\n    lr_mult: {head: 10, '*.bias': 0.5}"),
        ("freeze: none", "freeze: none\n    early_stopping: {patience: 3}"),
        ("lr: 1e-3", "lr: 1e-3, betas: [0.8, 0.99]"),
        ("lr: 1e-3", "lr: 1"),
        ("data/cells", "data/cells\n  augment: none"),
        ("data/cells", "data/cells\n  augment: [random_rotation, {name: random_erasing, scale: [0.1, 0.2]}]"),
        ("data/cells", "data/cells\n  normalize: {mean: [0, 0, 0], std: [1, 1, 1]}"),
        ("data/cells", "data/cells\n  classes: null\n  image_size: null\n  num_workers: 0"),
        ("name: cells", "name: 太陽電池-2.α"),
        ("{name: resnet18}", "{name: resnet18}\nhead: {hidden: []}"),
    ],
)
def test_json_schema_accepts_valid_values(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "r.yaml").write_text(replace(old, new))
    read_recipe(tmp_path / "r.yaml")
    assert is_valid(replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("freeze: none", "freeze: none\n    schedule: step"),  # step_size has no default
        ("optimizer: {name: adamw, lr: 1e-3}", "optimizer: adamw"),
        ("data/cells", "data/cells\n  augment: random_rotation"),
        ("data/cells", "data/cells\n  augment: [standard]"),
        ("data/cells", "data/cells\n  augment: [{name: random_erasing, scale: [0.1, 2]}]"),
        ("lr: 1e-3", "lr: 1e-3, betas: [0.9]"),
        ("name: cells", "name: a b"),
        ("name: cells", "name: -a"),
        ("name: cells", "name: ''"),
        ("data/cells", "[data/cells, data/cells]"),
        (RECIPE.split("stages:")[1], " []\n"),
    ],
)
def test_json_schema_rejects_invalid_names_and_lengths(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "r.yaml").write_text(replace(old, new))
    with pytest.raises(Exception, match=r"r\.yaml"):
        read_recipe(tmp_path / "r.yaml")
    assert not is_valid(replace(old, new))


def test_json_schema_has_descriptions_and_defaults() -> None:
    for part in [SCHEMA, *SCHEMA["$defs"].values()]:
        assert part["description"]
        assert part["additionalProperties"] is False
        for name, node in part["properties"].items():
            if "const" not in node:
                assert node["description"], name
                assert ("default" in node) is (name not in part.get("required", ())), name


def test_json_schema_defaults_match_recipe() -> None:
    data, stage = SCHEMA["$defs"]["Data"]["properties"], SCHEMA["$defs"]["Stage"]["properties"]
    assert data["val"]["default"] == 0.1
    assert data["augment"]["default"] == "standard"
    assert stage["lr_mult"]["default"] == {}
    assert stage["schedule"]["default"] == {"name": "constant", "warmup": 0.0}
    assert SCHEMA["$defs"]["RandomErasing"]["properties"]["scale"]["default"] == [0.02, 0.33]


def test_json_schema_uses_portable_keywords() -> None:
    keywords = {key for node in walk(SCHEMA) if "properties" not in node for key in node}
    assert not {"prefixItems", "discriminator", "x-allow-bare-name"} & keywords
    pattern = SCHEMA["properties"]["name"]["pattern"]  # \w matches ASCII only in editors
    for flags in (re.ASCII, re.UNICODE):
        assert all(re.search(pattern, name, flags) for name in ("太陽電池-2.α", "a", "_x", "1.0"))
        assert not any(re.search(pattern, name, flags) for name in ("", "-a", ".a", "a b", "a/b", "~a"))
