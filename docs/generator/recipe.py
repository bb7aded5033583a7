"""Generate docs/recipe.md, docs/recipe-tests.md and configs/recipe.schema.json from the schema of recipes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from docs.generator.key_tests import find_key_tests
from docs.generator.schema_reader import Key, SchemaReader, Section, format_value, list_keys, section_anchor
from ftcli.data.transforms import PRESETS
from ftcli.recipe.json_schema import build_json_schema

ROOT = Path(__file__).parents[2]
EXAMPLE_PATH = Path(__file__).with_name("example.yaml")

INTRODUCTION = """\
# The recipe

A recipe is a YAML file with the images, the network and the stages of training. `ftcli inspect RECIPE` shows the
model and the plan of a recipe, and `ftcli train RECIPE` trains it. This page lists every key with its values and its
default. A *required* key has no default; a required key with a dot is required only if its mapping is given. Unknown
keys are errors.

The second line of the example lets editors that support JSON Schema complete and validate a recipe; write the schema
next to your recipe with `ftcli schema > recipe.schema.json`. This page is generated from the
[schema](../ftcli/recipe/schema/) with `make docs`, and [every key has a test](recipe-tests.md).
"""

OVERRIDES_SECTION = """\
## Changing a key on the command line

`--set KEY=VALUE` changes a value of the recipe before it is validated, and can be repeated. Keys are joined by dots, a
stage is given by its name, an item of another list by its index from 0, and the value is YAML:

```sh
ftcli train flowers.yaml --set seed=1 --set stages.head.epochs=10
ftcli train flowers.yaml --set data.augment=flips --set 'stages.upper.freeze=[conv1, "layer[12]"]'
ftcli train flowers.yaml --set stages.upper.optimizer.lr=1e-4 --set 'head.hidden=[]'
```
"""

KEY_TESTS_HEADER = """\
# Tests of the recipe keys

For every key of [a recipe](recipe.md), the tests that fail if the key is ignored. A key of several transforms,
optimizers or schedules is listed once, and `stages.epochs` is `epochs` in any stage. Tests are marked with
`@pytest.mark.covers("stages.epochs")`; this page is generated from these marks with `make docs`.
"""


def render_documents() -> dict[str, str]:
    """Return the texts of the documents by their paths in the repository."""
    schema = build_json_schema()
    return {
        "configs/recipe.schema.json": json.dumps(schema, ensure_ascii=False, indent=2) + "\n",
        "docs/recipe.md": _render_reference(SchemaReader(schema)),
        "docs/recipe-tests.md": _render_key_tests(SchemaReader(schema)),
    }


def list_key_paths(reader: SchemaReader) -> tuple[str, ...]:
    """Return every key once, without those that only contain other keys."""
    sections = [reader.read_top_level(), *reader.read_sections()]
    return tuple(dict.fromkeys(key.key_path for section in sections for key in list_keys(section) if key.is_leaf))


def _render_reference(reader: SchemaReader) -> str:
    top_level, sections = reader.read_top_level(), reader.read_sections()
    example = f"## An example\n\n```yaml\n{EXAMPLE_PATH.read_text(encoding='utf-8')}```\n"
    texts = [INTRODUCTION, example, _render_index(top_level, sections), OVERRIDES_SECTION, _render_top_level(top_level)]
    return "\n".join([*texts, *(_render_section(section) for section in sections)])


def _render_index(top_level: Section, sections: Iterable[Section]) -> str:
    rows = [("[top level](#top-level)", _join_keys(top_level))]
    for section in sections:
        rows.append((f"[`{section.name}`](#{section_anchor(section.name)})", _join_keys(section)))
        key_paths = dict.fromkeys(alternative.key_path for alternative in section.alternatives)
        for key_path in key_paths:
            names = [alternative.name for alternative in section.alternatives if alternative.key_path == key_path]
            rows.append((_link_alternatives(key_path), ", ".join(f"[`{name}`](#{name})" for name in names)))
    return "## All keys\n\n" + _render_table(("section", "keys"), rows)


def _join_keys(section: Section) -> str:
    return ", ".join(f"`{_relative_key(section, key)}`" for key in section.keys)


def _link_alternatives(key_path: str) -> str:
    return (
        f"[`{key_path}`](#{_alternatives_title(key_path).lower().replace(' ', '-').replace('`', '').replace('.', '')})"
    )


def _alternatives_title(key_path: str) -> str:
    return f"Choices of `{key_path}`"


def _render_top_level(top_level: Section) -> str:
    return f"## Top level\n\n{_render_keys(top_level)}"


def _render_section(section: Section) -> str:
    texts = [f"## `{section.name}`\n\n{_escape(section.description)}\n\n{_render_keys(section)}"]
    if section.name == "data":
        texts.append(_render_presets())
    for key_path in dict.fromkeys(alternative.key_path for alternative in section.alternatives):
        texts.append(f"### {_alternatives_title(key_path)}\n")
        for alternative in (alternative for alternative in section.alternatives if alternative.key_path == key_path):
            settings = f"\n{_render_keys(alternative)}" if alternative.keys else ""
            texts.append(f"#### `{alternative.name}`\n\n{_escape(alternative.description)}\n{settings}")
    return "\n".join(texts)


def _render_keys(section: Section) -> str:
    rows = [
        (
            f"`{_relative_key(section, key)}`",
            key.allowed,
            "*required*" if key.default is None else f"`{key.default}`",
            _escape(key.description),
        )
        for key in section.keys
    ]
    return _render_table(("key", "values", "default", "description"), rows)


def _render_presets() -> str:
    rows = [
        (f"`{preset}`", f"`{format_value([transform.model_dump(exclude_defaults=True) for transform in transforms])}`")
        for preset, transforms in PRESETS.items()
    ]
    return f"### The presets of `data.augment`\n\n{_render_table(('preset', 'transforms'), rows)}"


def _render_key_tests(reader: SchemaReader) -> str:
    key_tests = find_key_tests(ROOT)
    rows = [
        (
            f"`{key_path}`",
            "<br>".join(f"[`{p.test}`](../{p.path})" for p in sorted(set(key_tests.get(key_path, ())))) or "none",
        )
        for key_path in list_key_paths(reader)
    ]
    return f"{KEY_TESTS_HEADER}\n{_render_table(('key', 'tests'), rows)}"


def _render_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _relative_key(section: Section, key: Key) -> str:
    return key.key_path.removeprefix(f"{section.key_path}.")


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")
