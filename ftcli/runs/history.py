"""The files that a run has written, read back: the history of its epochs and run.json."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ftcli.errors import CheckpointError
from ftcli.results import EpochMetrics
from ftcli.runs.run_dir import RunDir

_TRAINING_METRICS = ("train_loss", "train_accuracy", "lr", "images_per_second")
"""Metrics that epoch 0, which has no step, does not have."""
_METRICS = (*_TRAINING_METRICS, "val_loss", "val_accuracy", "seconds")


def run_of_checkpoint(checkpoint: Path) -> RunDir | None:
    """Return the run whose directory, or whose stages/, contains a checkpoint; None if it was moved elsewhere."""
    folder = checkpoint.parent
    if is_stage_checkpoint(checkpoint):
        folder = folder.parent if folder.name else folder.absolute().parent
    return RunDir(folder) if RunDir(folder).metrics.is_file() else None


def is_run_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint that training wrote into its run directory."""
    run_dir = run_of_checkpoint(path)
    if run_dir is None or not path.exists():
        return False
    return path.name in (run_dir.best_checkpoint.name, run_dir.last_checkpoint.name) or is_stage_checkpoint(path)


def is_stage_checkpoint(checkpoint: Path) -> bool:
    """Return whether a checkpoint is in the stages/ of a run. A run directory may itself be named stages."""
    folder = checkpoint.absolute().parent
    return folder.name == "stages" and not RunDir(folder).metrics.is_file()


def read_history(run_dir: RunDir) -> tuple[EpochMetrics, ...]:
    """Return the epochs of a run, in order.

    Raises CheckpointError for a metrics.jsonl that does not exist, was not written by ftcli or lacks an epoch.
    """
    history: list[EpochMetrics] = []
    for number, line in enumerate(_read_text(run_dir.metrics).splitlines(), 1):
        location = f"{run_dir.metrics}:{number}"
        try:
            metrics = _parse_metrics(line)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{location}: was not written by ftcli train ({error}); restore the file") from error
        previous = history[-1] if history else None
        expected = previous.epoch + 1 if previous and previous.stage == metrics.stage else 0
        if metrics.epoch != expected:
            raise CheckpointError(
                f"{location}: has epoch {metrics.epoch} of stage {metrics.stage}, expected epoch {expected}; "
                "restore the file"
            )
        history.append(metrics)
    return tuple(history)


def read_run_metadata(run_dir: RunDir) -> dict[str, Any]:
    """Return the content of run.json. Raises CheckpointError if it does not exist or was not written by ftcli."""
    try:
        metadata = json.loads(_read_text(run_dir.metadata))
    except ValueError as error:
        raise CheckpointError(f"{run_dir.metadata}: is not JSON ({error}); restore the file") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{run_dir.metadata}: does not contain a mapping; restore the file")
    return metadata


def _parse_metrics(line: str) -> EpochMetrics:
    """Parse a line of metrics.jsonl. Raises ValueError or TypeError if it is invalid."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise TypeError("it does not contain a mapping")
    if mismatched := sorted({field.name for field in dataclasses.fields(EpochMetrics)} ^ fields.keys()):
        raise ValueError(f"{mismatched[0]} is {'unknown' if mismatched[0] in fields else 'missing'}")
    metrics = EpochMetrics(**fields)
    if not isinstance(metrics.stage, str) or type(metrics.epoch) is not int:
        raise ValueError("stage is not a string, or epoch is not an integer")
    for name in _METRICS:
        value = fields[name]
        may_be_null = value is None and name in _TRAINING_METRICS
        if not may_be_null and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}, not a finite number")
    return metrics


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text; restore the file") from error
