"""Tests of the feature loaders: features computed in each pass have the bits of cached ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from ftcli.data.batches import Batch
from ftcli.data.images import CorruptImageError
from ftcli.data.loader import LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.features.cache import FeatureCache, FeatureRequest
from ftcli.features.loaders import CachedFeatureLoader, Clock, FeatureLoader
from ftcli.models.cut import cut_model
from ftcli.results import NullReporter, Preprocessing, ProgressTask
from ftcli.runtime import RngKey

CPU = torch.device("cpu")
EXPECTED = Preprocessing(16, 20, "crop", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
RANDOM = build_train_transform(EXPECTED, "standard")
RNG_KEYS = [(0, "head", 1), (0, "head", 2)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def samples(photo_folder: Path) -> tuple[Sample, ...]:
    paths = sorted(path.relative_to(photo_folder).as_posix() for path in (photo_folder / "train").rglob("*.jpg"))
    return tuple(Sample(path, int("flower" in path), 1 + number) for number, path in enumerate(paths))


def open_cache() -> FeatureCache:
    """Return the cache of a network that is cut at two boundary tensors."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = self.norm(self.first(images)).relu()
            logits: torch.Tensor = self.head((self.second(values) + values).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    network = Forked().to(memory_format=torch.channels_last)
    eval_modules = {"first", "norm"}
    frozen = {name for name, _ in network.named_parameters() if name.split(".")[0] in eval_modules}
    cut = cut_model(network, frozen, eval_modules, EXPECTED.image_size)
    assert cut is not None
    return FeatureCache(cut, EXPECTED, CPU, "float32")


def open_loaders(
    root: Path, samples: tuple[Sample, ...], transform: ImageTransform, batch_size: int, on_corrupt_image: str = "error"
) -> tuple[CachedFeatureLoader, FeatureLoader]:
    cache = open_cache()
    rng_keys: list[RngKey | None] = [*RNG_KEYS] if transform.is_random else [None]
    loader_config = LoaderConfig(root, on_corrupt_image, 0)  # type: ignore[arg-type]
    request = FeatureRequest(samples, transform, rng_keys, ProgressTask("computing", NullReporter()))
    cached = cache.get_or_compute(request, batch_size, loader_config)
    return cached, open_feature_loader(root, samples, transform, batch_size, on_corrupt_image)


def open_feature_loader(
    root: Path,
    samples: tuple[Sample, ...],
    transform: ImageTransform,
    batch_size: int,
    on_corrupt_image: str = "error",
    clock: Clock = nullcontext,
) -> FeatureLoader:
    loader_config = LoaderConfig(root, on_corrupt_image, 0)  # type: ignore[arg-type]
    return FeatureLoader(open_cache().backbone, samples, transform, batch_size, loader_config, clock)


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert [batch.paths for batch in actual] == [batch.paths for batch in expected]
    for actual_batch, expected_batch in zip(actual, expected, strict=True):
        assert [value.shape for value in actual_batch.inputs] == [value.shape for value in expected_batch.inputs]
        assert all(torch.equal(*pair) for pair in zip(actual_batch.inputs, expected_batch.inputs, strict=True))
        assert [value.stride() for value in actual_batch.inputs] == [value.stride() for value in expected_batch.inputs]
        assert torch.equal(actual_batch.labels, expected_batch.labels)
        assert torch.equal(actual_batch.weights, expected_batch.weights)
        assert actual_batch.skipped == expected_batch.skipped


@pytest.mark.parametrize("batch_size", [1, 7, 16, 24, 39, 64])
def test_feature_loader_gives_cached_bits_for_any_batch_size(
    photo_folder: Path, samples: tuple[Sample, ...], batch_size: int
) -> None:
    cached, computed = open_loaders(photo_folder, samples, RANDOM, batch_size)
    order = [*range(len(samples) - 1, -1, -2), *range(0, len(samples), 2)]
    with computed:
        for rng_key in (*RNG_KEYS, RNG_KEYS[0]):
            for start, merge_last in ((0, False), (1, True)):
                arguments = (order, rng_key, start, merge_last)
                assert_same(list(computed.batches(*arguments)), list(cached.batches(*arguments)))
        assert computed.count_batches(merge_last=True) == cached.count_batches(merge_last=True)
        assert list(computed.batches([], RNG_KEYS[0])) == []
    first, second = (next(computed.batches(rng_key=rng_key)).inputs[0] for rng_key in RNG_KEYS)
    assert not torch.equal(first, second)


def test_feature_loader_gives_trainable_values(photo_folder: Path, samples: tuple[Sample, ...]) -> None:
    with open_feature_loader(photo_folder, samples, RANDOM, 24) as loader:
        (values,) = next(loader.batches(rng_key=RNG_KEYS[0])).inputs
        weight = torch.ones((), requires_grad=True)
        (values * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        values.zero_()


def test_feature_loader_skips_corrupt_images_like_cached_loader(
    photo_folder: Path, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    for sample in samples:
        path = tmp_path / "own" / sample.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((photo_folder / sample.path).read_bytes())
    for number in (3, 17, *range(24, 32)):
        (tmp_path / "own" / samples[number].path).write_bytes(b"no image")
    cached, computed = open_loaders(tmp_path / "own", samples, build_eval_transform(EXPECTED), 8, "skip")
    with computed:
        actual = list(computed.batches())
        assert_same(actual, list(cached.batches()))
    assert [len(batch.paths) for batch in actual] == [7, 8, 7, 0, 8]
    loader = open_feature_loader(tmp_path / "own", samples, build_eval_transform(EXPECTED), 8)
    with loader, pytest.raises(CorruptImageError):
        list(loader.batches())


def test_feature_loader_clock_measures_computing_only(
    photo_folder: Path, samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    @contextmanager
    def clock() -> Iterator[None]:
        start = time.perf_counter()
        yield
        measured.append(time.perf_counter() - start)

    read = ImageTransform.__call__

    def read_slowly(transform: ImageTransform, image: object) -> object:
        time.sleep(0.02)
        return read(transform, image)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageTransform, "__call__", read_slowly)
    with open_feature_loader(photo_folder, samples, RANDOM, 40, clock=clock) as loader:
        start = time.perf_counter()
        assert len(list(loader.batches(rng_key=RNG_KEYS[0]))) == 1
        elapsed = time.perf_counter() - start
    assert len(measured) == -(-3 // open_cache().backbone.num_parallel_batches)  # forty images in batches of 16
    assert sum(measured) < elapsed / 2
