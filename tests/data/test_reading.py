from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image

from ftcli import runtime
from ftcli.data import pixels, reading
from ftcli.data.batches import Batch
from ftcli.data.images import BrokenImage, read_image
from ftcli.data.loading import Loader
from ftcli.data.pixels import PixelCache
from ftcli.data.reading import BatchReader, ImageFiles, Job
from ftcli.data.sources import Sample
from ftcli.data.threads import Threads
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.results import Preprocessing, Silent

PRE = Preprocessing(32, 36, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
PLAIN = build_eval_transform(PRE)
STRONG = build_train_transform(PRE, "strong")
SAMPLES = tuple(Sample(f"{number}.png", number % 2) for number in range(12))
PATIENCE = 20.0


@pytest.fixture
def root(tmp_path: Path, photos: tuple[Image.Image, Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pieces of photographs, the first much larger than the others."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, sample in enumerate(SAMPLES):
        piece = photos[number % 2].crop((20 * number, 10 * number, 20 * number + 80, 10 * number + 60))
        (piece if number else piece.resize((800, 600))).save(folder / sample.path)
    return folder


def make(
    root: Path, transform: ImageTransform, threads: int, on_corrupt_image: Literal["error", "skip"] = "error"
) -> object:
    team = Threads(threads)
    try:
        return BatchReader(ImageFiles(root, on_corrupt_image, 0), transform).make(
            Job(SAMPLES, (None,) * len(SAMPLES), (7, "head", 1)), team
        )
    finally:
        team.close()


class Meeting:
    """Reads an image when another thread reads one too."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    def __call__(self, path: Path, needed: int | None = None) -> Image.Image:
        self.barrier.wait(PATIENCE)
        return read_image(path, needed)


@pytest.mark.parametrize("transform", [PLAIN, STRONG, STRONG.defer()], ids=["plain", "strong", "deferred"])
def test_any_number_of_threads_gives_the_same_bytes(root: Path, transform: ImageTransform) -> None:
    expected = BatchReader(ImageFiles(root, "error", 0), transform)[Job(SAMPLES, (None,) * 12, (7, "head", 1))]
    assert isinstance(expected, Batch)
    for threads in (1, 2, 5):
        made = make(root, transform, threads)
        assert isinstance(made, Batch)
        assert torch.equal(made.values[0], expected.values[0])
        assert torch.equal(made.labels, expected.labels)
        assert made.paths == expected.paths == tuple(sample.path for sample in SAMPLES)
        for one, other in zip(made.changes, expected.changes, strict=True):
            assert torch.equal(one.drawn, other.drawn)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_broken_image_in_order_is_the_fault(root: Path, threads: int) -> None:
    content = (root / "0.png").read_bytes()
    (root / "0.png").write_bytes(content[: len(content) // 2])  # the fault of 1 is found sooner
    (root / "1.png").write_bytes(b"")
    fault = make(root, STRONG, threads)
    assert isinstance(fault, BrokenImage)
    assert str(fault).startswith(f"{root / '0.png'}: is cut short (")
    batch = make(root, STRONG, threads, "skip")
    assert isinstance(batch, Batch)
    assert [one.path for one in batch.left_out] == ["0.png", "1.png"]
    assert batch.left_out[1].why == "is empty (0 bytes)"
    assert batch.paths == tuple(sample.path for sample in SAMPLES[2:])


def test_a_loader_in_this_process_reads_with_threads_that_end_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    monkeypatch.setattr(reading, "read_image", Meeting())
    before = threading.active_count()
    with Loader(SAMPLES, STRONG, 4, ImageFiles(root, "error", 0)) as loader:
        assert sum(len(batch.paths) for batch in loader.batches(draw=(0,))) == len(SAMPLES)
        assert threading.active_count() == before + 2
        with Loader(SAMPLES, STRONG, 4, ImageFiles(root, "error", 2)) as other:
            monkeypatch.undo()  # a worker reads alone, and threads that wait here do not disturb it
            assert sum(len(batch.paths) for batch in other.batches(draw=(0,))) == len(SAMPLES)
    assert threading.active_count() == before


def test_what_is_kept_and_what_is_alone_is_read_without_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    kept = PixelCache(root, PLAIN)
    assert kept.fill(SAMPLES, 0, "error", Silent(), "decoding")
    before = threading.active_count()
    for size, cache in ((4, kept), (1, None)):
        with Loader(SAMPLES, PLAIN, size, ImageFiles(root, "error", 0, pixels=cache)) as loader:
            assert sum(len(batch.paths) for batch in loader.batches()) == len(SAMPLES)
            assert threading.active_count() == before


def test_pixels_are_decoded_with_threads_that_end_with_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    monkeypatch.setattr(pixels, "read_image", Meeting())
    monkeypatch.setattr(pixels, "_TASK", 1)  # one image
    before = threading.active_count()
    kept = PixelCache(root, PLAIN)
    assert kept.fill(SAMPLES, 0, "error", Silent(), "decoding")
    assert all(kept.find_key(sample.path) for sample in SAMPLES)
    assert threading.active_count() == before
