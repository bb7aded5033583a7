"""The predictions of an evaluation as a table, a row for each image."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftcli.evaluation.logits import EvalOutputs
from ftcli.files import atomic_open, atomic_open_binary

SUFFIXES = (".csv", ".parquet")
_CHUNK_ROWS = 4096


def write_predictions(outputs: EvalOutputs, classes: tuple[str, ...], target: Path) -> None:
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


def _write_csv(outputs: EvalOutputs, classes: tuple[str, ...], target: Path) -> None:
    with atomic_open(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_list_column_names(classes))
        for chunk, probabilities in _iter_chunks(outputs):
            predicted = probabilities.argmax(1)
            labels = outputs.labels[chunk].tolist()
            for path, label, row_probabilities, predicted_label in zip(
                outputs.paths[chunk], labels, probabilities.tolist(), predicted, strict=True
            ):
                correct = "true" if label == predicted_label else "false"
                writer.writerow(
                    [
                        path,
                        classes[label],
                        classes[predicted_label],
                        row_probabilities[predicted_label],
                        correct,
                        *row_probabilities,
                    ]
                )


def _write_parquet(outputs: EvalOutputs, classes: tuple[str, ...], target: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    column_types = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.bool_())
    column_names = [_escape_surrogates(name) for name in _list_column_names(classes)]
    schema = pyarrow.schema(
        list(zip(column_names, (*column_types, *(pyarrow.float64() for _ in classes)), strict=True))
    )
    class_names = np.array([_escape_surrogates(name) for name in classes], dtype=object)
    with atomic_open_binary(target) as file, ParquetWriter(file, schema) as writer:
        for chunk, probabilities in _iter_chunks(outputs):
            labels, predicted = outputs.labels[chunk].numpy(), probabilities.argmax(1)
            paths = [_escape_surrogates(path) for path in outputs.paths[chunk]]
            columns = [
                paths,
                class_names[labels],
                class_names[predicted],
                probabilities.max(1),
                labels == predicted,
                *probabilities.T,
            ]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(column) for column in columns], schema=schema))


def _list_column_names(classes: tuple[str, ...]) -> list[str]:
    return ["path", "label", "predicted", "probability", "correct", *(f"p_{name}" for name in classes)]


def _iter_chunks(outputs: EvalOutputs) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some images after others, and their probabilities: those of the figures, of which equal ones stay equal."""
    for start in range(0, len(outputs.paths), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        yield chunk, outputs.logits[chunk].double().softmax(1).numpy()


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
