"""What differs between the recipes of runs, and in what they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftcli.analysis.comparison.contenders import Contender
from ftcli.results import Setting

_MACHINE = ("ftcli", "python", "torch", "torchvision", "platform", "device", "threads")
"""What run.json tells of where a run was trained."""

Plain = Mapping[str, Any]


def find_settings(contenders: Sequence[Contender]) -> tuple[Setting, ...]:
    """The keys in which runs differ: those of their recipes, with the stages by name; the stages that were trained;
    under `origin` where their weights came from; and under `manifest` the machine and the fingerprint of the images.

    A run's name is no difference, and null is as good as a key that is not there. A list is told whole, and so is a
    mapping where another run has a single value. A run without a manifest has None for what the others differ in.
    """
    settings = _compare("", [_name_stages(each.checkpoint.recipe) for each in contenders])
    settings += _compare("trained stages", [_list_trained(each) for each in contenders])
    # The source of weights stands in the recipe too; its digest does not.
    origins = [each.checkpoint.origin for each in contenders]
    settings += _compare("origin", [{key: origin[key] for key in origin if key != "weights"} for origin in origins])
    known = [each.manifest for each in contenders if each.manifest is not None]
    for found in _compare("manifest", [_pick_facts(manifest) for manifest in known]):
        values = iter(found.values)
        own = tuple(None if each.manifest is None else next(values) for each in contenders)
        settings.append(Setting(found.key, own))
    return tuple(settings)


def _name_stages(recipe: Plain) -> Plain:
    stages = {stage["name"]: {key: stage[key] for key in stage if key != "name"} for stage in recipe["stages"]}
    return {key: recipe[key] for key in recipe if key not in ("name", "stages")} | {"stages": stages}


def _list_trained(contender: Contender) -> list[str]:
    """The stages that a run has gone through, or, where it left no rows, that its recipe has."""
    stages = [row.stage for row in contender.rows] or [stage["name"] for stage in contender.checkpoint.recipe["stages"]]
    return list(dict.fromkeys(stages))


def _pick_facts(manifest: Plain) -> Plain:
    data = manifest.get("data")
    return {key: manifest.get(key) for key in _MACHINE} | {
        "data": {"fingerprint": data.get("fingerprint") if isinstance(data, dict) else None}
    }


def _compare(key: str, values: Sequence[Any]) -> list[Setting]:
    """The settings at and below a key, in the order in which the values have them."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, Mapping) for value in there):
        names = dict.fromkeys(name for value in there for name in value)
        return [
            setting
            for name in names
            for setting in _compare(f"{key}.{name}" if key else name, [value and value.get(name) for value in values])
        ]
    if all(value == values[0] for value in values):
        return []
    return [Setting(key, tuple(values))]
