"""Names of the known data sets, importable without their code for a quick --help."""

from __future__ import annotations

from typing import Literal, get_args

DatasetName = Literal[
    "cifar10",
    "cifar100",
    "dtd",
    "eurosat",
    "fashion-mnist",
    "flowers102",
    "food101",
    "hotdog",
    "imagenette",
    "kmnist",
    "mnist",
    "oxford-pets",
    "solar-cells",
]
"""The values of `data.download` and the argument of `ftcli data download`."""

DATASET_NAMES: tuple[str, ...] = get_args(DatasetName)
"""All of them, in alphabetical order."""
