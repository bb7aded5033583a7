"""A checkpoint carries its world: weights, classes, preprocessing, recipe, origin, and a digest of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ftcli.data.index import find_base_folder
from ftcli.models.pretrained.checkpoint_file import (
    CONTENT_ERRORS,
    make_invalid_content_error,
    read_checkpoint_file,
    write_checkpoint_file,
)
from ftcli.results import Preprocessing


@dataclass(frozen=True)
class Checkpoint:
    """A network at one moment of a run.

    `kind` is best (lowest validation loss of its stage, at least) or last (with `progress`, all that is needed to go on
    exactly). `metrics` are those of these very weights, empty where they were not measured, as in the
    middle of an epoch. `head_path` is the module path of the head. `precisions` are the number formats that `precision: auto` came to in training, by the kind of
    device. `held` tells which split each image was in. `digest` is that of the file it was read
    from, empty before it is written.
    """

    kind: Literal["best", "last"]
    recipe: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    head_path: str
    stage: str
    epoch: int
    metrics: Mapping[str, float]
    origin: Mapping[str, Any]
    held: Mapping[str, tuple[str, ...]]
    state: Mapping[str, Tensor]
    progress: Mapping[str, Any] | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def splits_by_path(self) -> dict[str, str]:
        """The split of each image, by its path below the data's root."""
        return {path: split for split, paths in self.held.items() for path in paths}

    def splits_by_any_path(self) -> dict[str, str]:
        """The split of each image, by its path below the data's root and by its absolute one, by which another root
        that leads to it knows it."""
        splits = self.splits_by_path()
        root = find_base_folder(self.recipe["data"]["root"]).absolute()
        return splits | {os.path.normpath(root / path): split for path, split in splits.items()}


def write_checkpoint(checkpoint: Checkpoint, *paths: Path) -> str:
    """Write a checkpoint to each path, atomically, and return its digest. Raises RunError if the disk is full or not
    writable."""
    data: dict[str, Any] = {
        "kind": checkpoint.kind,
        "recipe": dict(checkpoint.recipe),
        "classes": list(checkpoint.classes),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "head_path": checkpoint.head_path,
        "stage": checkpoint.stage,
        "epoch": checkpoint.epoch,
        "metrics": dict(checkpoint.metrics),
        "origin": dict(checkpoint.origin),
        "held": {split: list(paths) for split, paths in checkpoint.held.items()},
        "state": {name: tensor.detach().cpu() for name, tensor in checkpoint.state.items()},
        "progress": None if checkpoint.progress is None else dict(checkpoint.progress),
        "precisions": dict(checkpoint.precisions),
    }
    return write_checkpoint_file(data, *paths)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; its tensors are on the CPU.

    Raises CheckpointError for a file that is missing, cut short, damaged, hostile, of another program or of a newer
    format. Nothing in the file is executed.
    """
    data, digest = read_checkpoint_file(path, str(path))
    try:
        return _from_dict(data, digest)
    except CONTENT_ERRORS as error:
        raise make_invalid_content_error(error, str(path)) from error


def _from_dict(data: dict[str, Any], digest: str) -> Checkpoint:
    return replace(
        Checkpoint(**data, digest=digest),
        classes=tuple(data["classes"]),
        preprocessing=Preprocessing.from_dict(data["preprocessing"]),
        held={split: tuple(paths) for split, paths in data["held"].items()},
    )
