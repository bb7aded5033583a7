from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ftcli.caching.eviction import get_cache_dir
from ftcli.data.batches import Batch
from ftcli.data.images import CorruptImageError
from ftcli.data.loader import BatchBuilder, BatchRequest, ImageLoader, LoaderConfig
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform, build_train_transform
from ftcli.errors import StopRequestedError
from ftcli.recipe import schema
from ftcli.results import NullReporter, Preprocessing, Progress, ProgressTask

PRE = Preprocessing(32, 36, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
PRESETS: tuple[schema.Preset, ...] = ("none", "flips", "standard", "strong")
COUNT = 14


class ProgressRecorder(NullReporter):
    """A reporter that records progress."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int]] = []

    def update_progress(self, progress: Progress) -> None:
        self.reports.append((progress.task, progress.done, progress.total))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, photos: tuple[Image.Image, Image.Image]) -> Path:
    """Return a folder of crops of photos: PNG and JPEG, colour and grey, one very large; 3 is truncated."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        piece = photos[number % 2].crop((30 * number, 10 * number, 30 * number + 90, 10 * number + 60))
        piece = piece.resize((1800, 1200)) if number == 5 else piece
        piece.convert("L" if number % 4 == 1 else "RGB").save(folder / name(number))
    content = (folder / name(3)).read_bytes()
    (folder / name(3)).write_bytes(content[: len(content) // 2])
    return folder


def name(number: int) -> str:
    return f"{number}.{'jpg' if number % 3 == 2 else 'png'}"


def list_samples() -> list[Sample]:
    return [Sample(name(number), number % 2) for number in range(COUNT)]


def read(root: Path, transform: ImageTransform, pixel_cache: PixelCache | None, num_workers: int = 0) -> list[Batch]:
    loader_config = LoaderConfig(root, "skip", num_workers, pixel_cache=pixel_cache)
    with ImageLoader(list_samples(), transform, 4, loader_config) as loader:
        return [batch for epoch in range(2) for batch in loader.batches(rng_key=(7, epoch))]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(actual.images, expected.images)
        and (actual.paths, actual.skip_messages) == (expected.paths, expected.skip_messages)
        for actual, expected in zip(first, second, strict=True)
    )


def fill(pixel_cache: PixelCache, num_workers: int = 0, reporter: NullReporter | None = None) -> None:
    pixel_cache.fill(list_samples(), num_workers, "skip", ProgressTask("decoding", reporter or NullReporter()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pixel_cache_gives_same_batches(root: Path, preset: schema.Preset, num_workers: int) -> None:
    transform = build_train_transform(PRE, preset)
    pixels = PixelCache(root, transform)
    fill(pixels, num_workers)
    expected = read(root, transform, None)
    for path in root.iterdir():  # 3 stays corrupt; no other file is opened again
        if path.name != name(3):
            path.write_bytes(b"")
    assert equal(read(root, transform, pixels, num_workers), expected)


def test_pixel_cache_separates_transforms(root: Path) -> None:
    for preset in PRESETS:
        fill(PixelCache(root, build_train_transform(PRE, preset)))
    other = Preprocessing(32, 40, "crop", "bilinear", PRE.mean, PRE.std)
    fill(PixelCache(root, build_train_transform(other, "none")))
    # The presets none and flips share a store, and so do standard and strong.
    assert len(list((get_cache_dir() / "pixels").iterdir())) == 3


def test_pixel_cache_keys_by_content(root: Path) -> None:
    transform = build_train_transform(PRE, "flips")
    fill(PixelCache(root, transform))
    (root / name(0)).rename(root / "moved.png")
    (root / name(1)).rename(root / name(0))
    (root / "moved.png").rename(root / name(1))
    recorder = ProgressRecorder()
    pixels = PixelCache(root, transform)
    fill(pixels, reporter=recorder)
    assert recorder.reports == [("decoding", COUNT, COUNT)]  # only the corrupt image was read again
    assert equal(read(root, transform, pixels), read(root, transform, None))


def test_pixel_cache_corrupt_images(root: Path) -> None:
    pixels = PixelCache(root, build_train_transform(PRE, "none"))
    with pytest.raises(CorruptImageError) as error:
        pixels.fill(list_samples(), 2, "error", ProgressTask("decoding", NullReporter()))
    assert multiprocessing.active_children() == []
    assert str(error.value).startswith(f"{root}/3.png: is truncated (")
    (root / name(6)).unlink()
    fill(pixels)
    is_cached = [pixels.find_key(name(number)) is not None for number in range(COUNT)]
    assert is_cached == [number not in (3, 6) for number in range(COUNT)]
    transform = build_train_transform(PRE, "none")
    assert [len(batch.skip_messages) for batch in read(root, transform, pixels)] == [1, 1, 0, 0] * 2


def test_pixel_cache_progress_and_stop(root: Path) -> None:
    pixels, num_calls = PixelCache(root, build_train_transform(PRE, "standard")), 0

    def stop() -> bool:
        nonlocal num_calls
        num_calls += 1
        return num_calls > 5

    with pytest.raises(StopRequestedError):
        pixels.fill(list_samples(), 0, "skip", ProgressTask("decoding", NullReporter(), stop))
    assert pixels.find_key(name(0)) is None
    recorder = ProgressRecorder()
    fill(pixels, reporter=recorder)
    assert recorder.reports[-1] == ("decoding", COUNT, COUNT)
    num_calls = 0
    (root / "extra.png").write_bytes((root / name(0)).read_bytes())  # these bytes are already stored
    samples = [*list_samples()[:3], Sample("extra.png", 0)]
    pixels.fill(samples, 0, "error", ProgressTask("decoding", NullReporter(), lambda: True))  # nothing to decode
    assert pixels.find_key("extra.png") == pixels.find_key(name(0))


@pytest.mark.parametrize("preset", ["none", "standard"])
def test_pixel_cache_estimate_bytes(root: Path, own_cache: Path, preset: schema.Preset) -> None:
    pixels = PixelCache(root, build_train_transform(PRE, preset))
    estimated = pixels.estimate_bytes(list_samples())
    fill(pixels)
    written = sum(path.stat().st_size for path in own_cache.glob("*/*/*.sqlite"))
    assert 0.85 * estimated < written < 1.15 * estimated + 4 * 32_768  # with the partly filled pages of an SQLite file
    assert pixels.estimate_bytes([]) == 0


def test_pixel_cache_decodes_evicted_images(root: Path, own_cache: Path) -> None:
    transform = build_train_transform(PRE, "flips")
    pixels = PixelCache(root, transform)
    fill(pixels)
    other = pickle.loads(pickle.dumps(pixels))  # as in a spawned worker
    key = pixels.find_key(name(0))
    assert key is not None
    first, second = pixels.read(key), other.read(key)
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    for path in own_cache.glob("*/*/*.sqlite"):
        path.unlink()
    late = pickle.loads(pickle.dumps(pixels))
    assert late.read(key) is None
    samples = tuple(list_samples()[:4])
    request = BatchRequest(samples, tuple(pixels.find_key(sample.path) for sample in samples), (7, 0))
    batch = BatchBuilder(LoaderConfig(root, "skip", 0, pixel_cache=late), transform)[request]
    assert isinstance(batch, Batch)
    assert equal([batch], read(root, transform, None)[:1])
    assert equal(read(root, transform, pixels), read(root, transform, None))


FILL = """
import sys
from pathlib import Path
from ftcli.data.pixel_cache import PixelCache
from ftcli.data.samples import Sample
from ftcli.data.transforms import build_train_transform
from ftcli.results import Preprocessing, NullReporter, ProgressTask
class PrintReporter(NullReporter):
    def update_progress(self, progress):
        print(progress.done, flush=True)
root = Path(sys.argv[1])
pre = Preprocessing(32, 36, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
samples = [Sample(path.name, 0) for path in sorted(root.iterdir())]
task = ProgressTask("decoding", PrintReporter())
PixelCache(root, build_train_transform(pre, "standard")).fill(samples, 1, "skip", task)
"""


def test_pixel_cache_survives_killed_fill(root: Path) -> None:
    for number in range(200):
        (root / f"x{number}.jpg").write_bytes((root / name(5)).read_bytes() + bytes([number]))
    with subprocess.Popen([sys.executable, "-c", FILL, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    transform = build_train_transform(PRE, "standard")
    pixels = PixelCache(root, transform)
    fill(pixels)
    assert equal(read(root, transform, pixels), read(root, transform, None))
    assert len(list(get_cache_dir().glob("pixels/*/*.sqlite"))) == 1
