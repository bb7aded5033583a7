"""Photographs, and folders of crops of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(photographs: dict[str, Image.Image]) -> tuple[Image.Image, Image.Image]:
    """A temple and a flower, 640 by 427 pixels."""
    return photographs["china"], photographs["flower"]


@pytest.fixture
def photo(photos: tuple[Image.Image, Image.Image]) -> Image.Image:
    """The temple at 160 by 106 pixels."""
    return photos[0].resize((160, 106), Image.Resampling.BICUBIC)


@pytest.fixture
def fill(tmp_path: Path, photos: tuple[Image.Image, Image.Image]) -> Callable[[Mapping[str, int]], Path]:
    """Return a function that creates tmp_path/data with that many different images in each folder, from 0.png on."""

    def create(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "data"
        for number, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                left, top = 37 * index % 560, 23 * index % 380
                piece = photos[number % 2].crop((left, top, left + 48, top + 32))
                piece.save(root / folder / f"{index}.png")
        return root

    return create


@pytest.fixture
def unreadable() -> Callable[[Path], AbstractContextManager[None]]:
    """A context in which a file or folder may not be read, by root either."""

    @contextmanager
    def forbid(path: Path) -> Iterator[None]:
        mode = path.stat().st_mode
        path.chmod(0)
        if os.getuid() == 0:  # root may read everything; switch to the user nobody
            os.seteuid(65534)
        try:
            yield
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            path.chmod(mode)

    return forbid
