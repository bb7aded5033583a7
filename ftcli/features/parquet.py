"""Features as a Parquet table, a row for each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import IO

from ftcli.features.buffer import FeatureBuffer


def write_parquet(
    file: IO[bytes],
    buffer: FeatureBuffer,
    columns: Sequence[str],
    classes: Sequence[str],
    dtype: str,
    metadata: Mapping[str, str],
) -> None:
    """Columns path, label (the name of the class), label_index and split, and one for each layer: lists of fixed size,
    the values of a map in the order of its shape, which `metadata` tells.

    In a name that is not UTF-8 the bytes that keep it from it stand as backslash escapes: Parquet's text is UTF-8.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    value_type = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    sizes = [math.prod(shape) for shape in buffer.shapes]
    fields = [
        ("path", pyarrow.string()),
        ("label", pyarrow.string()),
        ("label_index", pyarrow.int64()),
        ("split", pyarrow.string()),
        *((name, pyarrow.list_(value_type, size)) for name, size in zip(columns, sizes, strict=True)),
    ]
    labels = buffer.labels
    schema = pyarrow.schema(fields, metadata=dict(metadata))
    # A dictionary pays for what is repeated, which features are not.
    with ParquetWriter(file, schema, compression="zstd", use_dictionary=["label", "split"]) as writer:
        for start, end in buffer.chunks():
            class_names = [classes[label] for label in labels[start:end]]
            texts = map(_escape, (buffer.paths[start:end], class_names, buffer.splits[start:end]))
            path, label, split = (pyarrow.array(values, pyarrow.string()) for values in texts)
            lists = [
                pyarrow.FixedSizeListArray.from_arrays(buffer.read(layer, start, end).astype(dtype).ravel(), size)
                for layer, size in enumerate(sizes)
            ]
            arrays = [path, label, pyarrow.array(labels[start:end]), split, *lists]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema), row_group_size=end - start)


def _escape(values: Sequence[str]) -> list[str]:
    return [value.encode("utf-8", "backslashreplace").decode() for value in values]
