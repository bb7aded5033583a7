"""What differs between the recipes of runs, and in what they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftcli.comparison.loaded_run import LoadedRun
from ftcli.results import ConfigDifference

_ENVIRONMENT_KEYS = ("ftcli", "python", "torch", "torchvision", "platform", "device", "threads")
"""What run.json tells of where a run was trained."""

JsonObject = Mapping[str, Any]


def diff_configs(runs: Sequence[LoadedRun]) -> tuple[ConfigDifference, ...]:
    """The keys in which runs differ: those of their recipes, with the stages by name; the stages that were trained;
    under `origin` where their weights came from; and under `manifest` the machine and the fingerprint of the images.

    A run's name is no difference, and null is as good as a key that is not there. A list is told whole, and so is a
    mapping where another run has a single value. A run without a manifest has None for what the others differ in.
    """
    differences = _diff_values("", [_key_stages_by_name(run.checkpoint.recipe) for run in runs])
    differences += _diff_values("trained stages", [_list_trained_stages(run) for run in runs])
    # The source of weights stands in the recipe too; its digest does not.
    origins = [run.checkpoint.origin for run in runs]
    differences += _diff_values(
        "origin", [{key: origin[key] for key in origin if key != "weights"} for origin in origins]
    )
    known_metadata = [run.metadata for run in runs if run.metadata is not None]
    for difference in _diff_values("manifest", [_pick_environment(metadata) for metadata in known_metadata]):
        values = iter(difference.values)
        values_by_run = tuple(None if run.metadata is None else next(values) for run in runs)
        differences.append(ConfigDifference(difference.key, values_by_run))
    return tuple(differences)


def _key_stages_by_name(recipe: JsonObject) -> JsonObject:
    stages = {stage["name"]: {key: stage[key] for key in stage if key != "name"} for stage in recipe["stages"]}
    return {key: recipe[key] for key in recipe if key not in ("name", "stages")} | {"stages": stages}


def _list_trained_stages(run: LoadedRun) -> list[str]:
    """The stages that a run has gone through, or, where it left no rows, that its recipe has."""
    stages = [row.stage for row in run.history] or [stage["name"] for stage in run.checkpoint.recipe["stages"]]
    return list(dict.fromkeys(stages))


def _pick_environment(metadata: JsonObject) -> JsonObject:
    data = metadata.get("data")
    return {key: metadata.get(key) for key in _ENVIRONMENT_KEYS} | {
        "data": {"fingerprint": data.get("fingerprint") if isinstance(data, dict) else None}
    }


def _diff_values(key: str, values: Sequence[Any]) -> list[ConfigDifference]:
    """The settings at and below a key, in the order in which the values have them."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, Mapping) for value in present):
        names = dict.fromkeys(name for value in present for name in value)
        return [
            difference
            for name in names
            for difference in _diff_values(
                f"{key}.{name}" if key else name, [value and value.get(name) for value in values]
            )
        ]
    if all(value == values[0] for value in values):
        return []
    return [ConfigDifference(key, tuple(values))]
