"""Files of features: .npz, .npy, .parquet and .safetensors, with all that is needed to know what they hold."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ftcli.errors import RecipeError, suggest
from ftcli.features.arrays import (
    MAX_HEADER_BYTES,
    ArrayStream,
    dump_json,
    encode_safetensors_header,
    write_npy,
    write_npz,
    write_safetensors,
)
from ftcli.features.buffer import FeatureBuffer
from ftcli.features.parquet import write_parquet
from ftcli.files import atomic_open_binary, check_output_path
from ftcli.results import format_count
from ftcli.version import __version__

FORMATS = (".npz", ".parquet", ".safetensors", ".npy")
"""What the name of a store ends in; each is another format."""

FeatureDtype = Literal["float32", "float16"]
"""The types that features may be kept in."""

_TEXT_CHUNK_SIZE = 1000  # texts that are copied at a time


@dataclass(frozen=True)
class FeatureMetadata:
    """What features are of: the source as the user named it, the model, its weights and their SHA-256 (of their file,
    or a checkpoint's digest), the layers as they are shown, how their outputs were pooled, the classes in the order of
    the labels, how images became inputs, and the type of the numbers."""

    source: str
    model: str
    weights: str
    weights_sha256: str | None
    layers: tuple[str, ...]
    pool: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    dtype: FeatureDtype


def find_output_errors(target: Path, layers: Sequence[str]) -> list[str]:
    """What keeps features of layers of these names (as the user gave them) from being written there, by the name of
    the file alone."""
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        return [f"--out: {target} has an ending of no known format; {suggest(suffix, FORMATS)}"]
    if suffix == ".parquet" and not _has_pyarrow():
        return [f"--out: {target} needs the package pyarrow; pip install 'ftcli[parquet]'"]
    if suffix != ".npy":
        return []
    sidecar = sidecar_path(target)
    errors = []
    if len(layers) > 1 or "all" in layers:
        errors.append(f"--out: {target} holds one array, and several layers are asked for; give a .npz file")
    if sidecar.exists() and not target.exists():
        errors.append(f"--out: {target} comes with {sidecar}, which is there already; remove it, or give another name")
    else:
        try:
            check_output_path(sidecar, "--out")
        except RecipeError as error:
            errors += error.messages
    return errors


def check_header_size(target: Path, paths: Sequence[str], splits: Sequence[str]) -> None:
    """Raise RecipeError where the format could not hold the paths of so many images: a .safetensors file has them in
    its header, of at most 100 MB."""
    if target.suffix.lower() != ".safetensors":
        return
    size = len(encode_safetensors_header({}, {"paths": dump_json(list(paths)), "splits": dump_json(list(splits))}))
    if size > MAX_HEADER_BYTES - 1_000_000:  # for the rest: layers, classes and the description
        raise RecipeError(
            f"--out: {target} would need a header of {size / 1e6:.0f} MB for the paths of "
            f"{format_count(len(paths), 'image')}, and safetensors reads at most 100 MB; give a .parquet or .npz file"
        )


def write_features(target: Path, buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> None:
    """Write what a spool holds in the format that the file's ending names. It is there whole or not at all, and is
    copied part by part.

    .npz has the arrays features (n, *shape), labels (int64), paths, splits, classes, layers and about, a JSON text;
    .safetensors features and labels, and the others as JSON in its metadata; .npy features alone, and the others are in
    a .json file beside it; .parquet columns, as `write_parquet` says. Where there are several layers, each has an array
    of its own, features/<layer>. Raises RunError where the disk is full or cannot be written.
    """
    features, about = _stream_features(buffer, feature_metadata), _build_about(buffer, feature_metadata)
    lists = {"paths": buffer.paths, "splits": buffer.splits, **{key: about.pop(key) for key in ("classes", "layers")}}
    labels = {"labels": ArrayStream(np.dtype("<i8"), (len(buffer),), lambda: iter([buffer.labels]))}
    match target.suffix.lower():
        case ".npz":
            texts = {name: _stream_texts(values) for name, values in lists.items()}
            about_array = np.array(dump_json(about))
            texts["about"] = ArrayStream(about_array.dtype, (), lambda: iter([about_array]))
            with atomic_open_binary(target) as file:
                write_npz(file, {**features, **labels, **texts})
        case ".safetensors":
            metadata = {name: dump_json(values) for name, values in (*lists.items(), ("about", about))}
            with atomic_open_binary(target) as file:
                write_safetensors(file, {**features, **labels}, metadata)
        case ".parquet":
            parquet_metadata = {name: dump_json(lists[name]) for name in ("classes", "layers")} | {
                "about": dump_json(about)
            }
            with atomic_open_binary(target) as file:
                write_parquet(
                    file,
                    buffer,
                    make_column_names(buffer.layers),
                    feature_metadata.classes,
                    feature_metadata.dtype,
                    parquet_metadata,
                )
        case _:
            _write_with_sidecar(target, features, {**lists, "labels": buffer.labels.tolist(), "about": about})


def make_column_names(layers: Sequence[str]) -> tuple[str, ...]:
    """What the arrays of layers are called in a store."""
    return ("features",) if len(layers) == 1 else tuple(f"features/{layer}" for layer in layers)


def sidecar_path(target: Path) -> Path:
    """The file beside a .npy file that says what its rows are."""
    return target.with_suffix(".json")


def _write_with_sidecar(target: Path, features: Mapping[str, ArrayStream], sidecar_data: dict[str, Any]) -> None:
    """Both files or neither: they get their names when both are whole, the array last."""
    (stream,) = features.values()
    with atomic_open_binary(target) as file:
        write_npy(file, stream)
        file.flush()
        os.fsync(file.fileno())
        with atomic_open_binary(sidecar_path(target)) as sidecar_file:
            sidecar_file.write(dump_json(sidecar_data).encode())


def _build_about(buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> dict[str, Any]:
    shapes = [list(shape) for shape in buffer.shapes]
    return dataclasses.asdict(feature_metadata) | {"images": len(buffer), "shapes": shapes, "ftcli": __version__}


def _stream_features(buffer: FeatureBuffer, feature_metadata: FeatureMetadata) -> dict[str, ArrayStream]:
    def stream(layer: int) -> ArrayStream:
        shape = (len(buffer), *buffer.shapes[layer])
        dtype = np.dtype(feature_metadata.dtype).newbyteorder("<")
        return ArrayStream(dtype, shape, lambda: (buffer.read(layer, *chunk) for chunk in buffer.chunks()))

    return {name: stream(layer) for layer, name in enumerate(make_column_names(buffer.layers))}


def _stream_texts(values: Sequence[str]) -> ArrayStream:
    """Texts as numpy has them, each as wide as the longest, some at a time."""
    dtype = np.dtype(f"<U{max(1, *map(len, values))}")
    starts = range(0, len(values), _TEXT_CHUNK_SIZE)
    return ArrayStream(
        dtype,
        (len(values),),
        lambda: (np.array(values[start : start + _TEXT_CHUNK_SIZE], dtype=dtype) for start in starts),
    )


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None
