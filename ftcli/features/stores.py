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

from ftcli import __version__
from ftcli.errors import RecipeError, suggest
from ftcli.features.arrays import (
    HEADER_LIMIT,
    ArrayStream,
    dump_json,
    encode_header,
    write_npy,
    write_npz,
    write_safetensors,
)
from ftcli.features.parquet import write_parquet
from ftcli.features.spool import Spool
from ftcli.results import tell_count
from ftcli.storage import check_place, replace_bytes_gradually

FORMATS = (".npz", ".parquet", ".safetensors", ".npy")
"""What the name of a store ends in; each is another format."""

Dtype = Literal["float32", "float16"]
"""The types that features may be kept in."""

_TEXTS = 1000  # texts that are copied at a time


@dataclass(frozen=True)
class Description:
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
    dtype: Dtype


def find_faults(target: Path, layers: Sequence[str]) -> list[str]:
    """What keeps features of layers of these names (as the user gave them) from being written there, by the name of
    the file alone."""
    ending = target.suffix.lower()
    if ending not in FORMATS:
        return [f"--out: {target} has an ending of no known format; {suggest(ending, FORMATS)}"]
    if ending == ".parquet" and not _has_pyarrow():
        return [f"--out: {target} needs the package pyarrow; pip install 'ftcli[parquet]'"]
    if ending != ".npy":
        return []
    beside = name_companion(target)
    faults = []
    if len(layers) > 1 or "all" in layers:
        faults.append(f"--out: {target} holds one array, and several layers are asked for; give a .npz file")
    if beside.exists() and not target.exists():
        faults.append(f"--out: {target} comes with {beside}, which is there already; remove it, or give another name")
    else:
        try:
            check_place(beside, "--out")
        except RecipeError as error:
            faults += error.faults
    return faults


def check_capacity(target: Path, paths: Sequence[str], splits: Sequence[str]) -> None:
    """Raise RecipeError where the format could not hold the paths of so many images: a .safetensors file has them in
    its header, of at most 100 MB."""
    if target.suffix.lower() != ".safetensors":
        return
    size = len(encode_header({}, {"paths": dump_json(list(paths)), "splits": dump_json(list(splits))}))
    if size > HEADER_LIMIT - 1_000_000:  # for the rest: layers, classes and the description
        raise RecipeError(
            f"--out: {target} would need a header of {size / 1e6:.0f} MB for the paths of "
            f"{tell_count(len(paths), 'image')}, and safetensors reads at most 100 MB; give a .parquet or .npz file"
        )


def write_store(target: Path, spool: Spool, description: Description) -> None:
    """Write what a spool holds in the format that the file's ending names. It is there whole or not at all, and is
    copied part by part.

    .npz has the arrays features (n, *shape), labels (int64), paths, splits, classes, layers and about, a JSON text;
    .safetensors features and labels, and the others as JSON in its metadata; .npy features alone, and the others are in
    a .json file beside it; .parquet columns, as `write_parquet` says. Where there are several layers, each has an array
    of its own, features/<layer>. Raises RunError where the disk is full or cannot be written.
    """
    features, about = _stream_features(spool, description), _describe(spool, description)
    lists = {"paths": spool.paths, "splits": spool.splits, **{key: about.pop(key) for key in ("classes", "layers")}}
    labels = {"labels": ArrayStream(np.dtype("<i8"), (len(spool),), lambda: iter([spool.labels]))}
    match target.suffix.lower():
        case ".npz":
            texts = {name: _stream_texts(values) for name, values in lists.items()}
            told = np.array(dump_json(about))
            texts["about"] = ArrayStream(told.dtype, (), lambda: iter([told]))
            with replace_bytes_gradually(target) as file:
                write_npz(file, {**features, **labels, **texts})
        case ".safetensors":
            metadata = {name: dump_json(values) for name, values in (*lists.items(), ("about", about))}
            with replace_bytes_gradually(target) as file:
                write_safetensors(file, {**features, **labels}, metadata)
        case ".parquet":
            plain = {name: dump_json(lists[name]) for name in ("classes", "layers")} | {"about": dump_json(about)}
            with replace_bytes_gradually(target) as file:
                write_parquet(file, spool, name_columns(spool.layers), description.classes, description.dtype, plain)
        case _:
            _write_pair(target, features, {**lists, "labels": spool.labels.tolist(), "about": about})


def name_columns(layers: Sequence[str]) -> tuple[str, ...]:
    """What the arrays of layers are called in a store."""
    return ("features",) if len(layers) == 1 else tuple(f"features/{layer}" for layer in layers)


def name_companion(target: Path) -> Path:
    """The file beside a .npy file that says what its rows are."""
    return target.with_suffix(".json")


def _write_pair(target: Path, features: Mapping[str, ArrayStream], told: dict[str, Any]) -> None:
    """Both files or neither: they get their names when both are whole, the array last."""
    (stream,) = features.values()
    with replace_bytes_gradually(target) as file:
        write_npy(file, stream)
        file.flush()
        os.fsync(file.fileno())
        with replace_bytes_gradually(name_companion(target)) as beside:
            beside.write(dump_json(told).encode())


def _describe(spool: Spool, description: Description) -> dict[str, Any]:
    shapes = [list(shape) for shape in spool.shapes]
    return dataclasses.asdict(description) | {"images": len(spool), "shapes": shapes, "ftcli": __version__}


def _stream_features(spool: Spool, description: Description) -> dict[str, ArrayStream]:
    def stream(layer: int) -> ArrayStream:
        shape = (len(spool), *spool.shapes[layer])
        kind = np.dtype(description.dtype).newbyteorder("<")
        return ArrayStream(kind, shape, lambda: (spool.read(layer, *span) for span in spool.spans()))

    return {name: stream(layer) for layer, name in enumerate(name_columns(spool.layers))}


def _stream_texts(values: Sequence[str]) -> ArrayStream:
    """Texts as numpy has them, each as wide as the longest, some at a time."""
    kind = np.dtype(f"<U{max(1, *map(len, values))}")
    starts = range(0, len(values), _TEXTS)
    return ArrayStream(kind, (len(values),), lambda: (np.array(values[n : n + _TEXTS], dtype=kind) for n in starts))


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None
