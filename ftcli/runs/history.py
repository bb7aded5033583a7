"""What a run has written down, read back."""

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
"""Figures that an epoch without a step has none of."""
_METRICS = (*_TRAINING_METRICS, "val_loss", "val_accuracy", "seconds")


def run_of_checkpoint(checkpoint: Path) -> RunDir | None:
    """The run whose folder, or whose stages/, a checkpoint lies in; None where it has been taken elsewhere."""
    folder = checkpoint.parent
    if is_stage_checkpoint(checkpoint):
        folder = folder.parent if folder.name else folder.absolute().parent
    return RunDir(folder) if RunDir(folder).metrics.is_file() else None


def is_run_checkpoint(path: Path) -> bool:
    """Whether a file is one of the checkpoints that a training wrote for itself."""
    run = run_of_checkpoint(path)
    if run is None or not path.exists():
        return False
    return path.name in (run.best_loss.name, run.last.name) or is_stage_checkpoint(path)


def is_stage_checkpoint(checkpoint: Path) -> bool:
    """Whether a checkpoint lies where a run keeps what its stages came to. A run may be called stages itself."""
    folder = checkpoint.absolute().parent
    return folder.name == "stages" and not RunDir(folder).metrics.is_file()


def read_history(run_dir: RunDir) -> tuple[EpochMetrics, ...]:
    """The measured epochs of a run, in order. Raises CheckpointError for a metrics.jsonl that is missing, that ftcli
    did not write, or in which an epoch is missing."""
    rows: list[EpochMetrics] = []
    for number, line in enumerate(_read_text(run_dir.metrics).splitlines(), 1):
        location = f"{run_dir.metrics}:{number}"
        try:
            row = _parse_row(line)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{location}: is no line that ftcli train wrote ({error}); put the file back as it was"
            ) from error
        previous = rows[-1] if rows else None
        expected = previous.epoch + 1 if previous and previous.stage == row.stage else 0
        if row.epoch != expected:
            raise CheckpointError(
                f"{location}: is epoch {row.epoch} of the stage {row.stage}, where epoch {expected} would follow; put the "
                "file back as it was"
            )
        rows.append(row)
    return tuple(rows)


def read_run_metadata(run_dir: RunDir) -> dict[str, Any]:
    """What a run ran with and on. Raises CheckpointError for a run.json that is missing or that ftcli did not
    write."""
    try:
        data = json.loads(_read_text(run_dir.metadata))
    except ValueError as error:
        raise CheckpointError(f"{run_dir.metadata}: is no JSON ({error}); put the file back as it was") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{run_dir.metadata}: holds no mapping; put the file back as it was")
    return data


def _parse_row(line: str) -> EpochMetrics:
    """The row of a line. Raises ValueError or TypeError for what is none."""
    data = json.loads(line)
    if not isinstance(data, dict):
        raise TypeError("it holds no mapping")
    if mismatched := sorted({field.name for field in dataclasses.fields(EpochMetrics)} ^ data.keys()):
        raise ValueError(f"{mismatched[0]} is {'unknown' if mismatched[0] in data else 'missing'}")
    row = EpochMetrics(**data)
    if not isinstance(row.stage, str) or type(row.epoch) is not int:
        raise ValueError("stage is no text, or epoch no whole number")
    for name in _METRICS:
        value = data[name]
        may_be_null = value is None and name in _TRAINING_METRICS
        if not may_be_null and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}, no finite number")
    return row


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); put the file back as it was") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is no UTF-8 text; put the file back as it was") from error
