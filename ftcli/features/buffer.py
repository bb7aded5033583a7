"""A buffer of features in temporary files, so that memory use does not depend on the number of images."""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ftcli.errors import RunError
from ftcli.files import describe_write_error

if TYPE_CHECKING:
    from ftcli.features.extractor import FeatureBatch

_READ_BYTES = 4 * 2**20  # of the largest layer, read at a time


class FeatureBuffer:
    """The features of images in float32, one file per layer, with labels, paths and splits. A context manager.

    The files have no name and vanish with the process. They are in the folder of `target`, or in the system's temporary
    folder. With `as_float16` a value beyond the range of float16 is an error when it is added.
    """

    def __init__(
        self,
        target: Path | None,
        layers: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        as_float16: bool = False,
    ) -> None:
        self.layers, self.shapes = tuple(layers), tuple(shapes)
        self.paths: list[str] = []
        self.splits: list[str] = []
        self._target = target or Path(tempfile.gettempdir()) / "features"
        self._as_float16 = as_float16
        self._labels = array("q")
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> FeatureBuffer:
        try:
            for _ in self.layers:
                file = tempfile.TemporaryFile(buffering=0, dir=self._target.parent)
                self._files.append(self._stack.enter_context(file))
        except OSError as error:
            self._stack.close()
            raise RunError(describe_write_error(self._target, 0, error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of each image."""
        return np.array(self._labels, dtype=np.int64)

    def add(self, batch: FeatureBatch, split: str) -> None:
        """Append the features of some images of a split.

        Raises RunError if the disk is full, or for a value beyond the range of float16.
        """
        for layer, file, tensor in zip(self.layers, self._files, batch.features, strict=True):
            values = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
            if self._as_float16:
                _check_float16_range(layer, values, batch.paths)
            self._write(file, values)
        self._labels.extend(batch.labels.tolist())
        self.paths += batch.paths
        self.splits += [split] * len(batch.paths)

    def features(self, layer_index: int) -> NDArray[np.float32]:
        """Return the features of a layer, (n, *shape), as a read-only memory map."""
        shape = (len(self), *self.shapes[layer_index])
        return np.memmap(self._files[layer_index], dtype=np.float32, mode="r", shape=shape)

    def num_rows_per_chunk(self) -> int:
        """Return the number of images to read at a time: some megabytes of the largest layer."""
        return max(1, _READ_BYTES // (4 * max(map(math.prod, self.shapes))))

    def read(self, layer_index: int, start: int, end: int) -> NDArray[np.float32]:
        """Return a copy of a layer's features for images `start` up to `end`."""
        shape, end = self.shapes[layer_index], min(end, len(self))
        size = math.prod(shape)
        file = self._files[layer_index]
        file.seek(4 * start * size)
        return np.fromfile(file, dtype=np.float32, count=(end - start) * size).reshape(end - start, *shape)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges (start, end) to read one after another."""
        num_rows = self.num_rows_per_chunk()
        return ((start, min(start + num_rows, len(self))) for start in range(0, len(self), num_rows))

    def _write(self, file: IO[bytes], values: NDArray[np.float32]) -> None:
        remaining = values.data.cast("B") if values.size else memoryview(b"")
        try:
            while remaining:  # an unbuffered write may be partial when the disk is nearly full
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise RunError(describe_write_error(self._target, 0, error)) from error


def _check_float16_range(layer: str, values: NDArray[np.float32], paths: Sequence[str]) -> None:
    with np.errstate(over="ignore"):
        overflows = ~np.isfinite(values.astype(np.float16)).reshape(len(values), -1).all(1)
    if overflows.any():
        index = int(overflows.argmax())
        largest = float(np.abs(values[index]).max())
        raise RunError(
            f"{layer}: the output for {paths[index]} reaches {largest:.6g}, beyond the maximum of float16 (65504); use "
            "--dtype float32"
        )
