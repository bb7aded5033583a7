"""What is computed in each pass is, bit for bit, what is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from ftcli.data.batches import Batch
from ftcli.data.images import BrokenImage
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.features.cache import FeatureCache, Sight, Source
from ftcli.features.feeds import Clock, ComputedFeed, ValueFeed
from ftcli.models.cut import find_cut
from ftcli.results import Preprocessing, Silent

CPU = torch.device("cpu")
EXPECTED = Preprocessing(16, 20, "crop", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
RANDOM = build_train_transform(EXPECTED, "standard")
DRAWS = [(0, "head", 1), (0, "head", 2)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def samples(photo_folder: Path) -> tuple[Sample, ...]:
    paths = sorted(path.relative_to(photo_folder).as_posix() for path in (photo_folder / "train").rglob("*.jpg"))
    return tuple(Sample(path, int("flower" in path), 1 + number) for number, path in enumerate(paths))


def open_cache() -> FeatureCache:
    """The cache for a network whose last layers train, and which is given two values by the others."""

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
    still = {"first", "norm"}
    frozen = {name for name, _ in network.named_parameters() if name.split(".")[0] in still}
    cut = find_cut(network, frozen, still, EXPECTED.image_size)
    assert cut is not None
    return FeatureCache(cut, EXPECTED, CPU, "float32")


def open_both(
    root: Path, samples: tuple[Sample, ...], transform: ImageTransform, batch_size: int, bad: str = "error"
) -> tuple[ValueFeed, ComputedFeed]:
    cache = open_cache()
    sights = [Sight(transform, draw) for draw in (DRAWS if transform.is_random else [None])]
    source = Source(root, bad, 0)  # type: ignore[arg-type]  # one of the two words
    kept = cache.gather(samples, sights, batch_size, source, Silent(), "computing")
    assert kept is not None
    return kept, compute_anew(root, samples, transform, batch_size, bad)


def compute_anew(
    root: Path,
    samples: tuple[Sample, ...],
    transform: ImageTransform,
    batch_size: int,
    bad: str = "error",
    clock: Clock = nullcontext,
) -> ComputedFeed:
    files = ImageFiles(root, bad, 0)  # type: ignore[arg-type]
    return ComputedFeed(open_cache().prefix, samples, transform, batch_size, files, clock)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.paths for batch in ours] == [batch.paths for batch in theirs]
    for own, other in zip(ours, theirs, strict=True):
        assert [value.shape for value in own.values] == [value.shape for value in other.values]
        assert all(torch.equal(*pair) for pair in zip(own.values, other.values, strict=True))
        assert [value.stride() for value in own.values] == [value.stride() for value in other.values]
        assert torch.equal(own.labels, other.labels)
        assert torch.equal(own.weights, other.weights)
        assert own.left_out == other.left_out


@pytest.mark.parametrize("batch_size", [1, 7, 16, 24, 39, 64])
def test_batches_of_any_size_have_the_bits_that_are_kept(
    photo_folder: Path, samples: tuple[Sample, ...], batch_size: int
) -> None:
    kept, anew = open_both(photo_folder, samples, RANDOM, batch_size)
    order = [*range(len(samples) - 1, -1, -2), *range(0, len(samples), 2)]
    with anew:
        for draw in (*DRAWS, DRAWS[0]):
            for start, merge_last in ((0, False), (1, True)):
                arguments = (order, draw, start, merge_last)
                assert_same(list(anew.batches(*arguments)), list(kept.batches(*arguments)))
        assert anew.count_batches(merge_last=True) == kept.count_batches(merge_last=True)
        assert list(anew.batches([], DRAWS[0])) == []
    first, second = (next(anew.batches(draw=draw)).values[0] for draw in DRAWS)
    assert not torch.equal(first, second)


def test_values_may_be_trained_on(photo_folder: Path, samples: tuple[Sample, ...]) -> None:
    with compute_anew(photo_folder, samples, RANDOM, 24) as feed:
        (values,) = next(feed.batches(draw=DRAWS[0])).values
        weight = torch.ones((), requires_grad=True)
        (values * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        values.zero_()


def test_broken_images_are_left_out_alike(photo_folder: Path, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    for sample in samples:
        path = tmp_path / "own" / sample.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((photo_folder / sample.path).read_bytes())
    for number in (3, 17, *range(24, 32)):
        (tmp_path / "own" / samples[number].path).write_bytes(b"no image")
    kept, anew = open_both(tmp_path / "own", samples, build_eval_transform(EXPECTED), 8, "skip")
    with anew:
        ours = list(anew.batches())
        assert_same(ours, list(kept.batches()))
    assert [len(batch.paths) for batch in ours] == [7, 8, 7, 0, 8]
    feed = compute_anew(tmp_path / "own", samples, build_eval_transform(EXPECTED), 8)
    with feed, pytest.raises(BrokenImage):
        list(feed.batches())


def test_the_clock_measures_the_computing_alone(
    photo_folder: Path, samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    @contextmanager
    def clock() -> Iterator[None]:
        began = time.perf_counter()
        yield
        measured.append(time.perf_counter() - began)

    read = ImageTransform.__call__

    def read_slowly(transform: ImageTransform, image: object) -> object:
        time.sleep(0.02)
        return read(transform, image)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageTransform, "__call__", read_slowly)
    with compute_anew(photo_folder, samples, RANDOM, 40, clock=clock) as feed:
        began = time.perf_counter()
        assert len(list(feed.batches(draw=DRAWS[0]))) == 1
        took = time.perf_counter() - began
    assert len(measured) == -(-3 // open_cache().prefix.beside)  # forty images, sixteen to a batch
    assert sum(measured) < took / 2
