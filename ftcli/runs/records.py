"""What a run has written down, read back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ftcli.errors import CheckpointError
from ftcli.results import EpochRow
from ftcli.runs.folder import RunFolder

_TRAINING = ("train_loss", "train_accuracy", "lr", "images_per_second")
"""Figures that an epoch without a step has none of."""
_FIGURES = (*_TRAINING, "val_loss", "val_accuracy", "seconds")


def find_run(checkpoint: Path) -> RunFolder | None:
    """The run whose folder, or whose stages/, a checkpoint lies in; None where it has been taken elsewhere."""
    folder = checkpoint.parent
    if is_of_stage(checkpoint):
        folder = folder.parent if folder.name else folder.absolute().parent
    return RunFolder(folder) if RunFolder(folder).metrics.is_file() else None


def is_of_run(path: Path) -> bool:
    """Whether a file is one of the checkpoints that a training wrote for itself."""
    run = find_run(path)
    if run is None or not path.exists():
        return False
    return path.name in (run.best_loss.name, run.last.name) or is_of_stage(path)


def is_of_stage(checkpoint: Path) -> bool:
    """Whether a checkpoint lies where a run keeps what its stages came to. A run may be called stages itself."""
    folder = checkpoint.absolute().parent
    return folder.name == "stages" and not RunFolder(folder).metrics.is_file()


def read_rows(folder: RunFolder) -> tuple[EpochRow, ...]:
    """The measured epochs of a run, in order. Raises CheckpointError for a metrics.jsonl that is missing, that ftcli
    did not write, or in which an epoch is missing."""
    rows: list[EpochRow] = []
    for number, line in enumerate(_read(folder.metrics).splitlines(), 1):
        where = f"{folder.metrics}:{number}"
        try:
            row = _revive(line)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where}: is no line that ftcli train wrote ({error}); put the file back as it was"
            ) from error
        before = rows[-1] if rows else None
        expected = before.epoch + 1 if before and before.stage == row.stage else 0
        if row.epoch != expected:
            raise CheckpointError(
                f"{where}: is epoch {row.epoch} of the stage {row.stage}, where epoch {expected} would follow; put the "
                "file back as it was"
            )
        rows.append(row)
    return tuple(rows)


def read_manifest(folder: RunFolder) -> dict[str, Any]:
    """What a run ran with and on. Raises CheckpointError for a run.json that is missing or that ftcli did not
    write."""
    try:
        plain = json.loads(_read(folder.manifest))
    except ValueError as error:
        raise CheckpointError(f"{folder.manifest}: is no JSON ({error}); put the file back as it was") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{folder.manifest}: holds no mapping; put the file back as it was")
    return plain


def _revive(line: str) -> EpochRow:
    """The row of a line. Raises ValueError or TypeError for what is none."""
    plain = json.loads(line)
    if not isinstance(plain, dict):
        raise TypeError("it holds no mapping")
    if odd := sorted({field.name for field in dataclasses.fields(EpochRow)} ^ plain.keys()):
        raise ValueError(f"{odd[0]} is {'unknown' if odd[0] in plain else 'missing'}")
    row = EpochRow(**plain)
    if not isinstance(row.stage, str) or type(row.epoch) is not int:
        raise ValueError("stage is no text, or epoch no whole number")
    for name in _FIGURES:
        value = plain[name]
        blank = value is None and name in _TRAINING
        if not blank and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}, no finite number")
    return row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); put the file back as it was") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is no UTF-8 text; put the file back as it was") from error
