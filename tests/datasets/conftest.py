"""Small archives with the layouts of the published ones, served on this machine."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftcli.datasets.registry import DATASETS, RemoteFile
from ftcli.results import NullReporter, Progress
from tests.server import Server

Serve = Callable[..., tuple[str, ...]]


class RecordingReporter(NullReporter):
    """A Reporter that records progress and may interrupt."""

    def __init__(self, stop_at: int = -1) -> None:
        self.reported: list[Progress] = []
        self.stop_at = stop_at

    def update_progress(self, progress: Progress) -> None:
        self.reported.append(progress)
        if progress.done == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def serve_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve files instead of those of a known data set, under their names. Returns their addresses."""

    def serve(name: str, *contents: bytes) -> tuple[str, ...]:
        known = DATASETS[name]
        names = [f"/{name}/{remote.url.rpartition('/')[2]}" for remote in known.files]
        urls = tuple(server.serve(path, content) for path, content in zip(names, contents, strict=True))
        digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents]
        files = tuple(RemoteFile(url, digest) for url, digest in zip(urls, digests, strict=True))
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(known, files=files))
        return urls

    return serve


@pytest.fixture(scope="session")
def jpegs(photographs: dict[str, Image.Image]) -> tuple[bytes, ...]:
    """Twelve different small photographs, as JPEG files."""

    photos = list(photographs.values())

    def encode(number: int) -> bytes:
        file = io.BytesIO()
        photos[number % 2].crop((40 * number, 20 * number, 40 * number + 48, 20 * number + 32)).save(file, "JPEG")
        return file.getvalue()

    return tuple(encode(number) for number in range(12))


def pack_zip(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def pack_tar(members: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]  # the mode is no literal
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def pack_idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def list_files(root: Path) -> dict[str, bytes]:
    """Return the files of a folder except SOURCE.txt."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files.pop("SOURCE.txt")
    return files
