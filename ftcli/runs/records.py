"""What a run has written down, read back."""

from __future__ import annotations

import json
from pathlib import Path

from ftcli.errors import CheckpointError
from ftcli.results import EpochRow
from ftcli.runs.folder import RunFolder


def find_run(checkpoint: Path) -> RunFolder | None:
    """The run whose folder, or whose stages/, a checkpoint lies in; None where it has been taken elsewhere."""
    for folder in (RunFolder(checkpoint.parent), RunFolder(checkpoint.parent.parent)):
        if folder.metrics.is_file():
            return folder
    return None


def read_rows(folder: RunFolder) -> tuple[EpochRow, ...]:
    """The measured epochs of a run, in order. Raises CheckpointError for a metrics.jsonl that is missing or that ftcli
    did not write."""
    try:
        text = folder.metrics.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder.metrics}: cannot be read ({error}); give the folder of a run") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows.append(EpochRow(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.metrics}:{number}: is no line that ftcli train wrote ({error}); put the file back"
            ) from error
    return tuple(rows)
