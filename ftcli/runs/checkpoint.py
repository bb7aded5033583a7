"""Checkpoints: the weights of a model with everything that is needed to use or resume them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ftcli.data.index import find_base_folder
from ftcli.models.checkpoint_file import (
    CONTENT_ERRORS,
    make_invalid_content_error,
    read_checkpoint_file,
    write_checkpoint_file,
)
from ftcli.results import Preprocessing


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model at one step of a run.

    `kind` is best (lowest validation loss of its stage or run) or last (with `progress`, from which the run resumes
    exactly). `metrics` are those of these weights, empty within an epoch. `head_path` is the module path of the head.
    `origin` says which weights the run started from. `splits` are the paths of the images of each split. `precisions`
    are the number formats that `precision: auto` was resolved to, by device type. `digest` is that of the file, empty
    before it is written.
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
    splits: Mapping[str, tuple[str, ...]]
    state: Mapping[str, Tensor]
    progress: Mapping[str, Any] | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def splits_by_path(self) -> dict[str, str]:
        """Return the split of each image by its path relative to the data root."""
        return {path: split for split, paths in self.splits.items() for path in paths}

    def splits_by_any_path(self) -> dict[str, str]:
        """Return the split of each image by its relative and by its absolute path, so that other roots find it too."""
        splits = self.splits_by_path()
        root = find_base_folder(self.recipe["data"]["root"]).absolute()
        return splits | {os.path.normpath(root / path): split for path, split in splits.items()}


def write_checkpoint(checkpoint: Checkpoint, *paths: Path) -> str:
    """Write a checkpoint atomically to each path and return its digest.

    Raises RunError if the disk is full or not writable.
    """
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
        "splits": {split: list(paths) for split, paths in checkpoint.splits.items()},
        "state": {name: tensor.detach().cpu() for name, tensor in checkpoint.state.items()},
        "progress": None if checkpoint.progress is None else dict(checkpoint.progress),
        "precisions": dict(checkpoint.precisions),
    }
    return write_checkpoint_file(data, *paths)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, with its tensors on the CPU. Executes nothing in the file.

    Raises CheckpointError for a file that is missing, truncated, corrupt, hostile, of another program or of a newer
    format.
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
        splits={split: tuple(paths) for split, paths in data["splits"].items()},
    )
