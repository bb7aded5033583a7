"""The predictions of an evaluation as a table, a row for each image."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.inference.outputs import Outputs
from ftcli.storage import replace_bytes_gradually, replace_gradually

ENDINGS = (".csv", ".parquet")
_ROWS = 4096


def write_predictions(outputs: Outputs, classes: tuple[str, ...], target: Path) -> None:
    """Write path, label, predicted, probability (of the predicted class), correct (true or false), and the probability
    of each class as p_<class>, in the order of the images; as Parquet or CSV (UTF-8) by the ending, whole or not at
    all.

    In a name that is not UTF-8 the bytes that keep it from it stand as backslash escapes. Raises RunError if the disk
    is full or not writable.
    """
    if target.suffix.lower() == ".parquet":
        _write_parquet(outputs, classes, target)
    else:
        _write_csv(outputs, classes, target)


def _write_csv(outputs: Outputs, classes: tuple[str, ...], target: Path) -> None:
    with replace_gradually(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_name_columns(classes))
        for rows, shares in _divide(outputs):
            given = shares.argmax(1)
            labels = outputs.labels[rows].tolist()
            for path, label, own, place in zip(outputs.paths[rows], labels, shares.tolist(), given, strict=True):
                right = "true" if label == place else "false"
                writer.writerow([path, classes[label], classes[place], own[place], right, *own])


def _write_parquet(outputs: Outputs, classes: tuple[str, ...], target: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.bool_())
    names = [_escape(name) for name in _name_columns(classes)]
    schema = pyarrow.schema(list(zip(names, (*kinds, *(pyarrow.float64() for _ in classes)), strict=True)))
    texts = np.array([_escape(name) for name in classes], dtype=object)
    with replace_bytes_gradually(target) as file, ParquetWriter(file, schema) as writer:
        for rows, shares in _divide(outputs):
            labels, given = outputs.labels[rows].numpy(), shares.argmax(1)
            paths = [_escape(path) for path in outputs.paths[rows]]
            values = [paths, texts[labels], texts[given], shares.max(1), labels == given, *shares.T]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(column) for column in values], schema=schema))


def _name_columns(classes: tuple[str, ...]) -> list[str]:
    return ["path", "label", "predicted", "probability", "correct", *(f"p_{name}" for name in classes)]


def _divide(outputs: Outputs) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some images after others, and their probabilities: those of the figures, of which equal ones stay equal."""
    for start in range(0, len(outputs.paths), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, outputs.logits[rows].double().softmax(1).numpy()


def _escape(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
