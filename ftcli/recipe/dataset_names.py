"""The known data sets by name, for help too, which must be quick; their files and makers are in data/fetching."""

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
"""What `data.download` and `ftcli data download` take."""

DATASET_NAMES: tuple[str, ...] = get_args(DatasetName)
"""The same, to go through."""
