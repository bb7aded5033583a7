"""Files of the predictions of an evaluation, with a row per image."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ftcli.evaluation.logits import EvalOutputs
from ftcli.files import atomic_open, atomic_open_binary

SUFFIXES = (".csv", ".parquet")
_CHUNK_ROWS = 4096


def write_predictions(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    """Write the predictions atomically, as Parquet or CSV (UTF-8) by the suffix, in the order of the images.

    Columns are path, label, predicted, probability (of the predicted class), correct (true or false), and p_<class>
    with the probability of each class. Bytes of names that are not UTF-8 are written as backslash escapes. Raises
    RunError if the disk is full or not writable.
    """
    if path.suffix.lower() == ".parquet":
        _write_parquet(outputs, classes, path)
    else:
        _write_csv(outputs, classes, path)


def _write_csv(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    with atomic_open(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_list_column_names(classes))
        for chunk in _chunks(outputs):
            rows = zip(
                outputs.paths[chunk],
                outputs.labels[chunk].tolist(),
                outputs.predicted[chunk].tolist(),
                outputs.confidence[chunk].tolist(),
                outputs.probabilities[chunk].tolist(),
                strict=True,
            )
            for path_text, label, predicted, confidence, probabilities in rows:
                correct = "true" if label == predicted else "false"
                writer.writerow([path_text, classes[label], classes[predicted], confidence, correct, *probabilities])


def _write_parquet(outputs: EvalOutputs, classes: tuple[str, ...], path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    column_types = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.bool_())
    column_names = [_escape_surrogates(name) for name in _list_column_names(classes)]
    schema = pyarrow.schema(
        list(zip(column_names, (*column_types, *(pyarrow.float64() for _ in classes)), strict=True))
    )
    class_names = np.array([_escape_surrogates(name) for name in classes], dtype=object)
    with atomic_open_binary(path) as file, ParquetWriter(file, schema) as writer:
        for chunk in _chunks(outputs):
            columns = [
                [_escape_surrogates(path_text) for path_text in outputs.paths[chunk]],
                class_names[outputs.labels[chunk].numpy()],
                class_names[outputs.predicted[chunk].numpy()],
                outputs.confidence[chunk].numpy(),
                outputs.correct[chunk].numpy(),
                *outputs.probabilities[chunk].numpy().T,
            ]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(column) for column in columns], schema=schema))


def _list_column_names(classes: tuple[str, ...]) -> list[str]:
    return ["path", "label", "predicted", "probability", "correct", *(f"p_{name}" for name in classes)]


def _chunks(outputs: EvalOutputs) -> list[slice]:
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, len(outputs.paths), _CHUNK_ROWS)]


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
