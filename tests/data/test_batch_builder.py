from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image

from ftcli import runtime
from ftcli.data import loader as loader_module
from ftcli.data import pixel_cache as pixel_cache_module
from ftcli.data.batches import Batch
from ftcli.data.images import CorruptImageError, read_image
from ftcli.data.loader import BatchBuilder, BatchRequest, ImageLoader, LoaderConfig
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.samples import Sample
from ftcli.data.thread_map import ThreadedMap
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.results import NullReporter, Preprocessing, ProgressTask

PRE = Preprocessing(32, 36, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
PLAIN = build_eval_transform(PRE)
STRONG = build_train_transform(PRE, "strong")
SAMPLES = tuple(Sample(f"{number}.png", number % 2) for number in range(12))
TIMEOUT = 20.0


@pytest.fixture
def root(tmp_path: Path, photos: tuple[Image.Image, Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with crops of photos, the first of which is much larger than the others."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, sample in enumerate(SAMPLES):
        piece = photos[number % 2].crop((20 * number, 10 * number, 20 * number + 80, 10 * number + 60))
        (piece if number else piece.resize((800, 600))).save(folder / sample.path)
    return folder


def build(
    root: Path, transform: ImageTransform, num_threads: int, on_corrupt_image: Literal["error", "skip"] = "error"
) -> object:
    thread_map = ThreadedMap(num_threads)
    try:
        return BatchBuilder(LoaderConfig(root, on_corrupt_image, 0), transform).build(
            BatchRequest(SAMPLES, (None,) * len(SAMPLES), (7, "head", 1)), thread_map
        )
    finally:
        thread_map.close()


class BarrierReader:
    """A read_image that waits until another thread reads an image too."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    def __call__(self, path: Path, min_decode_size: int | None = None) -> Image.Image:
        self.barrier.wait(TIMEOUT)
        return read_image(path, min_decode_size)


@pytest.mark.parametrize("transform", [PLAIN, STRONG, STRONG.defer_to_device()], ids=["plain", "strong", "deferred"])
def test_batch_builder_same_bytes_for_any_num_threads(root: Path, transform: ImageTransform) -> None:
    expected = BatchBuilder(LoaderConfig(root, "error", 0), transform)[
        BatchRequest(SAMPLES, (None,) * 12, (7, "head", 1))
    ]
    assert isinstance(expected, Batch)
    for num_threads in (1, 2, 5):
        batch = build(root, transform, num_threads)
        assert isinstance(batch, Batch)
        assert torch.equal(batch.inputs[0], expected.inputs[0])
        assert torch.equal(batch.labels, expected.labels)
        assert batch.paths == expected.paths == tuple(sample.path for sample in SAMPLES)
        for actual_params, expected_params in zip(batch.transform_params, expected.transform_params, strict=True):
            assert torch.equal(actual_params.params, expected_params.params)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_batch_builder_reports_first_corrupt_image(root: Path, num_threads: int) -> None:
    content = (root / "0.png").read_bytes()
    (root / "0.png").write_bytes(content[: len(content) // 2])  # found later than the error of 1
    (root / "1.png").write_bytes(b"")
    error = build(root, STRONG, num_threads)
    assert isinstance(error, CorruptImageError)
    assert str(error).startswith(f"{root / '0.png'}: is truncated (")
    batch = build(root, STRONG, num_threads, "skip")
    assert isinstance(batch, Batch)
    assert [skipped.path for skipped in batch.skipped] == ["0.png", "1.png"]
    assert batch.skipped[1].reason == "is empty (0 bytes)"
    assert batch.paths == tuple(sample.path for sample in SAMPLES[2:])


def count_threads() -> int:
    """Return the number of image loading threads. torch's queues have threads too, which end at their own time."""
    return sum(thread.name.startswith("ftcli") for thread in threading.enumerate())


def test_loader_without_workers_uses_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    monkeypatch.setattr(loader_module, "read_image", BarrierReader())
    before = count_threads()
    with ImageLoader(SAMPLES, STRONG, 4, LoaderConfig(root, "error", 0)) as loader:
        assert sum(len(batch.paths) for batch in loader.batches(rng_key=(0,))) == len(SAMPLES)
        assert count_threads() == before + 2
        with ImageLoader(SAMPLES, STRONG, 4, LoaderConfig(root, "error", 2)) as worker_loader:
            monkeypatch.undo()  # a worker reads images one by one
            assert sum(len(batch.paths) for batch in worker_loader.batches(rng_key=(0,))) == len(SAMPLES)
    assert count_threads() == before


def test_cached_and_single_images_use_no_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    pixel_cache = PixelCache(root, PLAIN)
    pixel_cache.fill(SAMPLES, 0, "error", ProgressTask("decoding", NullReporter()))
    before = count_threads()
    for size, cache in ((4, pixel_cache), (1, None)):
        with ImageLoader(SAMPLES, PLAIN, size, LoaderConfig(root, "error", 0, pixel_cache=cache)) as loader:
            assert sum(len(batch.paths) for batch in loader.batches()) == len(SAMPLES)
            assert count_threads() == before


def test_pixel_cache_decodes_with_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: 2)
    monkeypatch.setattr(pixel_cache_module, "read_image", BarrierReader())
    monkeypatch.setattr(pixel_cache_module, "_TASK_BYTES", 1)  # one image per task
    before = count_threads()
    pixel_cache = PixelCache(root, PLAIN)
    pixel_cache.fill(SAMPLES, 0, "error", ProgressTask("decoding", NullReporter()))
    assert all(pixel_cache.find_key(sample.path) for sample in SAMPLES)
    assert count_threads() == before
