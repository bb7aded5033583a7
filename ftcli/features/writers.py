"""Files of features: .npz, .npy, .parquet and .safetensors, written in chunks, so that their size is not limited."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ftcli.errors import RecipeError, install_hint, suggest
from ftcli.features.extractor import FeatureBuffer
from ftcli.files import atomic_open_binary, check_output_path
from ftcli.results import format_count
from ftcli.version import __version__

FORMATS = (".npz", ".parquet", ".safetensors", ".npy")

FeatureDtype = Literal["float32", "float16"]

_TEXT_CHUNK_SIZE = 1000
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; safetensors reads no longer header
_SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}


@dataclass(frozen=True)
class FeatureMetadata:
    """The origin of features.

    `source` is the model, recipe or checkpoint as the user named it, `weights_sha256` the digest of the weights file or
    of the checkpoint, `classes` are in the order of the labels. Field names are JSON keys.
    """

    source: str
    model: str
    weights: str
    weights_sha256: str | None
    layers: tuple[str, ...]
    pool: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    dtype: FeatureDtype


@dataclass(frozen=True)
class ArrayStream:
    """An array read in chunks along its first axis, as often as needed."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def num_bytes(self) -> int:
        """The size of the values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def write(self, file: IO[bytes]) -> None:
        """Write the values in C order."""
        for chunk in self.chunks():
            file.write(np.ascontiguousarray(chunk, dtype=self.dtype).tobytes())


def find_output_errors(target: Path, layers: Sequence[str]) -> list[str]:
    """Return the reasons why the features of these layers, named as by the user, cannot be written to a file."""
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        return [f"--out: {target} has an unknown suffix {suffix!r}; {suggest(suffix, FORMATS)}"]
    if suffix == ".parquet" and not _has_pyarrow():
        return [f"--out: {target} needs the package pyarrow; {install_hint('parquet')}"]
    if suffix != ".npy":
        return []
    sidecar = sidecar_path(target)
    errors = []
    if len(layers) > 1 or "all" in layers:
        errors.append(f"--out: {target} holds one array, not several layers; give a .npz file")
    if sidecar.exists() and not target.exists():
        errors.append(f"--out: {sidecar}, the file for the labels of {target}, exists; remove it, or give another name")
    else:
        try:
            check_output_path(sidecar, "--out")
        except RecipeError as error:
            errors += error.messages
    return errors


def check_header_size(target: Path, paths: Sequence[str], splits: Sequence[str]) -> None:
    """Raise RecipeError if the paths do not fit into the header of a .safetensors file."""
    if target.suffix.lower() != ".safetensors":
        return
    metadata = {"paths": _dump_json(list(paths)), "splits": _dump_json(list(splits))}
    size = len(_encode_safetensors_header({}, metadata))
    if size > _MAX_SAFETENSORS_HEADER - 1_000_000:  # the rest is for layers, classes and the description
        raise RecipeError(
            f"--out: {target} would need a header of {size / 1e6:.0f} MB for the paths of "
            f"{format_count(len(paths), 'image')}, and safetensors reads at most 100 MB; give a .parquet or .npz file"
        )


def write_features(target: Path, buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> None:
    """Write features to a file, atomically and in chunks, in the format of its suffix.

    .npz has the arrays features (n, *shape), labels (int64), paths, splits, classes, layers and about (JSON text).
    .safetensors has features and labels, and the others as JSON in its metadata. .npy has features alone, and a .json
    file next to it the others. .parquet has the columns of `_write_parquet`. Several layers are features/<layer>.
    Raises RunError if the disk is full or the file cannot be written.
    """
    features, about = _stream_features(buffer, feature_metadata), _build_about(buffer, feature_metadata)
    lists = {"paths": buffer.paths, "splits": buffer.splits, **{key: about.pop(key) for key in ("classes", "layers")}}
    labels = {"labels": ArrayStream(np.dtype("<i8"), (len(buffer),), lambda: iter([buffer.labels]))}
    if target.suffix.lower() == ".npy":
        _write_with_sidecar(target, features, {**lists, "labels": buffer.labels.tolist(), "about": about})
        return
    with atomic_open_binary(target) as file:
        match target.suffix.lower():
            case ".npz":
                texts = {name: _stream_texts(values) for name, values in lists.items()}
                about_array = np.array(_dump_json(about))
                texts["about"] = ArrayStream(about_array.dtype, (), lambda: iter([about_array]))
                _write_npz(file, {**features, **labels, **texts})
            case ".safetensors":
                metadata = {name: _dump_json(values) for name, values in (*lists.items(), ("about", about))}
                _write_safetensors(file, {**features, **labels}, metadata)
            case _:
                metadata = {name: _dump_json(lists[name]) for name in ("classes", "layers")}
                _write_parquet(file, buffer, feature_metadata, metadata | {"about": _dump_json(about)})


def make_column_names(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the layers' arrays in a file."""
    return ("features",) if len(layers) == 1 else tuple(f"features/{layer}" for layer in layers)


def sidecar_path(target: Path) -> Path:
    """Return the path of the .json file that describes the rows of a .npy file."""
    return target.with_suffix(".json")


def _write_npy(file: IO[bytes], stream: ArrayStream) -> None:
    header = {"descr": npy.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": stream.shape}
    npy.write_array_header_1_0(file, header)
    stream.write(file)


def _write_npz(file: IO[bytes], streams: Mapping[str, ArrayStream]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, stream in streams.items():
            # A fixed date: the same features give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                _write_npy(member, stream)


def _write_safetensors(file: IO[bytes], streams: Mapping[str, ArrayStream], metadata: Mapping[str, str]) -> None:
    # The safetensors package writes only arrays that are in memory.
    header = _encode_safetensors_header(streams, metadata)
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for stream in streams.values():
        stream.write(file)


def _encode_safetensors_header(streams: Mapping[str, ArrayStream], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a .safetensors file; https://github.com/huggingface/safetensors#format."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stream in streams.items():
        begin, end = end, end + stream.num_bytes
        dtype = _SAFETENSORS_DTYPES[stream.dtype.name]
        entries[name] = {"dtype": dtype, "shape": list(stream.shape), "data_offsets": [begin, end]}
    header = _dump_json(entries).encode()
    return header + b" " * (-len(header) % 8)  # the format aligns the values to 8 bytes


def _write_parquet(
    file: IO[bytes], buffer: FeatureBuffer, feature_metadata: FeatureMetadata, metadata: Mapping[str, str]
) -> None:
    """Write columns path, label (the class), label_index, split, and per layer a list of fixed size.

    Feature maps are flattened in C order. Bytes that are not UTF-8 in a name are escaped with backslashes.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    dtype, classes = feature_metadata.dtype, feature_metadata.classes
    value_type = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    sizes = [math.prod(shape) for shape in buffer.shapes]
    columns = zip(make_column_names(buffer.layers), sizes, strict=True)
    fields = [
        ("path", pyarrow.string()),
        ("label", pyarrow.string()),
        ("label_index", pyarrow.int64()),
        ("split", pyarrow.string()),
        *((name, pyarrow.list_(value_type, size)) for name, size in columns),
    ]
    labels = buffer.labels
    schema = pyarrow.schema(fields, metadata=dict(metadata))
    # A dictionary is useful only for values that repeat.
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


def _write_with_sidecar(target: Path, features: Mapping[str, ArrayStream], sidecar_data: dict[str, Any]) -> None:
    """Write the array and its .json file; neither is visible before both are complete."""
    (stream,) = features.values()
    with atomic_open_binary(target) as file:
        _write_npy(file, stream)
        file.flush()
        os.fsync(file.fileno())
        with atomic_open_binary(sidecar_path(target)) as sidecar_file:
            sidecar_file.write(_dump_json(sidecar_data).encode())


def _build_about(buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> dict[str, Any]:
    shapes = [list(shape) for shape in buffer.shapes]
    return dataclasses.asdict(feature_metadata) | {"images": len(buffer), "shapes": shapes, "ftcli": __version__}


def _stream_features(buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> dict[str, ArrayStream]:
    dtype = np.dtype(feature_metadata.dtype).newbyteorder("<")

    def stream(layer: int) -> ArrayStream:
        shape = (len(buffer), *buffer.shapes[layer])
        return ArrayStream(dtype, shape, lambda: (buffer.read(layer, *chunk) for chunk in buffer.chunks()))

    return {name: stream(layer) for layer, name in enumerate(make_column_names(buffer.layers))}


def _stream_texts(values: Sequence[str]) -> ArrayStream:
    """Return texts as numpy stores them: all as wide as the longest."""
    dtype = np.dtype(f"<U{max(1, *map(len, values))}")
    starts = range(0, len(values), _TEXT_CHUNK_SIZE)
    return ArrayStream(
        dtype,
        (len(values),),
        lambda: (np.array(values[start : start + _TEXT_CHUNK_SIZE], dtype=dtype) for start in starts),
    )


def _dump_json(value: object) -> str:
    """Return compact JSON; lone surrogates (file names that are not UTF-8) are escaped as JSON escapes them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def _escape(values: Sequence[str]) -> list[str]:
    return [value.encode("utf-8", "backslashreplace").decode() for value in values]


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None
