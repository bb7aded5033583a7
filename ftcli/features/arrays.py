"""Arrays of any size into .npy, .npz and .safetensors files, part by part."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_HEADER_BYTES = 100_000_000
"""The bytes of the longest header that safetensors reads."""

_SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}
"""What safetensors calls the types of numpy."""


@dataclass(frozen=True)
class ArrayStream:
    """An array that is never in memory whole: `parts` gives it along its first axis, as often as it is asked for."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def num_bytes(self) -> int:
        """Its bytes."""
        num_bytes = self.dtype.itemsize
        for dim in self.shape:
            num_bytes *= dim
        return num_bytes

    def write(self, file: IO[bytes]) -> None:
        """Its values, row by row, as numpy has them in memory."""
        for chunk in self.chunks():
            file.write(np.ascontiguousarray(chunk, dtype=self.dtype).tobytes())


def write_npy(file: IO[bytes], stream: ArrayStream) -> None:
    """One array, as numpy.load reads it."""
    header = {"descr": npy.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": stream.shape}
    npy.write_array_header_1_0(file, header)
    stream.write(file)


def write_npz(file: IO[bytes], streams: Mapping[str, ArrayStream]) -> None:
    """Named arrays, as numpy.load reads them; each may have more than 4 GB."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, stream in streams.items():
            # A date of its own would make two files of the same features differ.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                write_npy(member, stream)


def write_safetensors(file: IO[bytes], streams: Mapping[str, ArrayStream], metadata: Mapping[str, str]) -> None:
    """Named arrays and texts. The package safetensors has means to write what is in memory alone."""
    header = encode_safetensors_header(streams, metadata)
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for stream in streams.values():
        stream.write(file)


def encode_safetensors_header(streams: Mapping[str, ArrayStream], metadata: Mapping[str, str]) -> bytes:
    """What a .safetensors file begins with, after its length; https://github.com/huggingface/safetensors#format."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stream in streams.items():
        begin, end = end, end + stream.num_bytes
        dtype = _SAFETENSORS_DTYPES[stream.dtype.name]
        entries[name] = {"dtype": dtype, "shape": list(stream.shape), "data_offsets": [begin, end]}
    header = dump_json(entries).encode()
    return header + b" " * (-len(header) % 8)  # so that the numbers begin at a multiple of 8, as they must


def dump_json(value: object) -> str:
    """Compact JSON that is UTF-8 whatever it holds: of names that are none, the bytes that keep them from it stand as
    escapes, which `json.loads` makes them again."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()
