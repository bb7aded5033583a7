"""docs/recipe.md, docs/recipe-tests.md and configs/recipe.schema.json, from the schema of recipes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from docs.generator.keys import Key, Mapping, Reader, link_name, list_keys, tell_value
from docs.generator.proofs import find_proofs
from ftcli.data.transforms import PRESETS
from ftcli.recipe.reference import describe_recipe

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).with_name("example.yaml")

INTRODUCTION = """\
# The recipe

A recipe is a YAML file that says which images, which network, and which stages of training. `ftcli inspect RECIPE`
tells what it comes to and `ftcli train RECIPE` trains it. Every key is below, with what it may be and what it is when
it is left out. *needed* marks those without a default; a needed key with a dot is needed where its mapping stands. Any
other key is refused.

The second line of the example lets editors that know JSON Schema complete and check a recipe while it is written; put
the schema beside your recipe with `ftcli schema > recipe.schema.json`. This page is made from the same
[schema](../ftcli/recipe/schema/) by `make docs`, and for every key there is
[a test that shows that it does something](recipe-tests.md).
"""

OVERRIDING = """\
## Changing a key without editing

`--set KEY=VALUE`, as often as needed, changes what a recipe says before it is checked. Keys are joined by dots, a stage
is called by its name, an item of another list by its number from 0, and the value is YAML:

```sh
ftcli train flowers.yaml --set seed=1 --set stages.head.epochs=10
ftcli train flowers.yaml --set data.augment=flips --set 'stages.upper.freeze=[conv1, "layer[12]"]'
ftcli train flowers.yaml --set stages.upper.optimizer.lr=1e-4 --set 'head.hidden=[]'
```
"""

PROOFS = """\
# What shows that each key does something

For every key of [a recipe](recipe.md), the tests that fail if it is ignored. A key that several transforms, optimizers
or schedules have stands here once. Stages are not named: `stages.epochs` is `epochs` in any stage. Tests carry the keys
as `@pytest.mark.covers("stages.epochs")`; this page is made from these marks by `make docs`.
"""


def render_documents() -> dict[str, str]:
    """The texts of the documents by their path in the project."""
    document = describe_recipe()
    return {
        "configs/recipe.schema.json": json.dumps(document, ensure_ascii=False, indent=2) + "\n",
        "docs/recipe.md": _render_reference(Reader(document)),
        "docs/recipe-tests.md": _render_proofs(Reader(document)),
    }


def list_places(reader: Reader) -> tuple[str, ...]:
    """Every key that settles something, once: not those that only hold others."""
    mappings = [reader.read_top(), *reader.read_parts()]
    return tuple(dict.fromkeys(key.place for mapping in mappings for key in list_keys(mapping) if key.settles))


def _render_reference(reader: Reader) -> str:
    top, parts = reader.read_top(), reader.read_parts()
    example = f"## An example\n\n```yaml\n{EXAMPLE.read_text(encoding='utf-8')}```\n"
    sections = [INTRODUCTION, example, _render_index(top, parts), OVERRIDING, _render_top(top)]
    return "\n".join([*sections, *(_render_part(part) for part in parts)])


def _render_index(top: Mapping, parts: Iterable[Mapping]) -> str:
    rows = [("[at the top](#at-the-top)", _name_keys(top))]
    for part in parts:
        rows.append((f"[`{part.name}`](#{link_name(part.name)})", _name_keys(part)))
        places = dict.fromkeys(alternative.place for alternative in part.names)
        for place in places:
            names = [alternative.name for alternative in part.names if alternative.place == place]
            rows.append((_link_names(place), ", ".join(f"[`{name}`](#{name})" for name in names)))
    return "## All keys\n\n" + _render_table(("where", "what stands there"), rows)


def _name_keys(mapping: Mapping) -> str:
    return ", ".join(f"`{_shorten(mapping, key)}`" for key in mapping.keys)


def _link_names(place: str) -> str:
    return f"[`{place}`](#{_title_names(place).lower().replace(' ', '-').replace('`', '').replace('.', '')})"


def _title_names(place: str) -> str:
    return f"What `{place}` may name"


def _render_top(top: Mapping) -> str:
    return f"## At the top\n\n{_render_keys(top)}"


def _render_part(part: Mapping) -> str:
    sections = [f"## `{part.name}`\n\n{_escape(part.description)}\n\n{_render_keys(part)}"]
    if part.name == "data":
        sections.append(_render_presets())
    for place in dict.fromkeys(alternative.place for alternative in part.names):
        sections.append(f"### {_title_names(place)}\n")
        for alternative in (alternative for alternative in part.names if alternative.place == place):
            settings = f"\n{_render_keys(alternative)}" if alternative.keys else ""
            sections.append(f"#### `{alternative.name}`\n\n{_escape(alternative.description)}\n{settings}")
    return "\n".join(sections)


def _render_keys(mapping: Mapping) -> str:
    rows = [
        (
            f"`{_shorten(mapping, key)}`",
            key.may_be,
            "*needed*" if key.default is None else f"`{key.default}`",
            _escape(key.description),
        )
        for key in mapping.keys
    ]
    return _render_table(("key", "may be", "default", "what it does"), rows)


def _render_presets() -> str:
    rows = [
        (f"`{preset}`", f"`{tell_value([transform.model_dump(exclude_defaults=True) for transform in transforms])}`")
        for preset, transforms in PRESETS.items()
    ]
    return f"### The presets of `data.augment`\n\n{_render_table(('preset', 'stands for'), rows)}"


def _render_proofs(reader: Reader) -> str:
    proofs = find_proofs(ROOT)
    rows = [
        (f"`{place}`", "<br>".join(f"[`{p.test}`](../{p.path})" for p in sorted(set(proofs.get(place, ())))) or "none")
        for place in list_places(reader)
    ]
    return f"{PROOFS}\n{_render_table(('key', 'shown by'), rows)}"


def _render_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _shorten(mapping: Mapping, key: Key) -> str:
    return key.place.removeprefix(f"{mapping.place}.")


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")
