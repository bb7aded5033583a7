"""Differences between the recipes and environments of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftcli.comparison.compare import diff_configs
from ftcli.comparison.loaded_run import LoadedRun
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import Checkpoint


def _create_run(recipe: dict[str, Any], metadata: dict[str, Any] | None = None) -> LoadedRun:
    preprocessing = Preprocessing(32, 32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    origin = {"weights": recipe["name"], "weights_sha256": None, "checkpoint": None}
    checkpoint = Checkpoint("best", recipe, ("a", "b"), preprocessing, "fc", "head", 1, {}, origin, {}, {})
    return LoadedRun(recipe["name"], Path(), Path(), checkpoint, (), metadata)


def test_diff_configs_lists_differences_only() -> None:
    head = {"name": "head", "freeze": "backbone", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    tail = {"name": "tail", "epochs": 1, "clip_grad_norm": None}
    first = {"name": "first", "seed": 0, "data": {"val": 0.1, "image_size": None, "augment": "flips"}, "stages": [head]}
    second = {
        **first,
        "name": "second",
        "data": {"val": 0.1, "image_size": 96, "augment": [{"name": "rotation", "degrees": 5}]},
        "stages": [{**head, "freeze": {"through": "layer1"}, "optimizer": {"name": "adam", "lr": 0.1}}, tail],
    }
    machine = {"torch": "2.10", "device": "cpu", "command": ["x"], "data": {"fingerprint": "f"}}
    runs = [
        _create_run(first, machine),
        _create_run(second, {**machine, "torch": "2.11", "command": ["y"]}),
        _create_run(first),
    ]
    assert [(difference.key, difference.values) for difference in diff_configs(runs)] == [
        ("data.image_size", (None, 96, None)),
        ("data.augment", ("flips", [{"name": "rotation", "degrees": 5}], "flips")),
        ("stages.head.freeze", ("backbone", {"through": "layer1"}, "backbone")),
        ("stages.head.optimizer.name", ("sgd", "adam", "sgd")),
        ("stages.head.optimizer.momentum", (0.9, None, 0.9)),
        ("stages.tail.epochs", (None, 1, None)),
        ("trained stages", (["head"], ["head", "tail"], ["head"])),
        ("run.torch", ("2.10", "2.11", None)),
    ]
    assert diff_configs([runs[0], runs[2]]) == ()
