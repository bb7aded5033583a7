from __future__ import annotations

import multiprocessing
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from ftcli import runtime
from ftcli.data.batches import Batch, count_batches
from ftcli.data.images import CorruptImageError, read_image, read_rgb
from ftcli.data.loader import ImageLoader, LoaderConfig, epoch_permutation, measure_normalization, resolve_num_workers
from ftcli.data.samples import Sample
from ftcli.data.transforms import build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.results import Preprocessing

PRE = Preprocessing(32, 32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
PLAIN = build_eval_transform(PRE)
STRONG = build_train_transform(PRE, "strong")
COUNT = 23


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, photos: tuple[Image.Image, Image.Image]) -> Path:
    """Return a folder with 23 crops of photos, one of which has a name that is not valid text."""
    folder = tmp_path_factory.mktemp("images")
    for sample in list_samples():
        number = int(sample.path.split("-")[0])
        piece = photos[number % 2].crop((20 * number, 10 * number, 20 * number + 80, 10 * number + 60))
        piece.save(folder / sample.path)
    return folder


@pytest.fixture
def corrupt_root(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder in which images 5, 8, 9, 10 and 11 are truncated."""
    for sample in list_samples():
        content = (root / sample.path).read_bytes()
        number = int(sample.path.split("-")[0])
        (tmp_path / sample.path).write_bytes(content[: len(content) // 2] if number in (5, 8, 9, 10, 11) else content)
    return tmp_path


def list_samples() -> tuple[Sample, ...]:
    last = os.fsdecode(b"22-\xff \xd0\xbf.png")
    return tuple(Sample(f"{number}-a.png" if number < 22 else last, number % 2) for number in range(COUNT))


def open_loader(
    root: Path, num_workers: int, on_corrupt_image: Literal["error", "skip"] = "error", batch_size: int = 4
) -> ImageLoader:
    return ImageLoader(list_samples(), STRONG, batch_size, LoaderConfig(root, on_corrupt_image, num_workers))


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and (one.paths, one.skip_messages) == (other.paths, other.skip_messages)
    )


def count_workers() -> int:
    return len(multiprocessing.active_children())


def sizes(batches: Iterator[Batch]) -> list[int]:
    return [len(batch.paths) for batch in batches]


def test_batch_contents(root: Path) -> None:
    samples = list_samples()
    loader = ImageLoader(samples, PLAIN, 4, LoaderConfig(root, "error", 0))
    batches = list(loader.batches())
    assert [path for batch in batches for path in batch.paths] == [sample.path for sample in samples]
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.paths), 3, 32, 32)
        assert batch.labels.dtype == torch.int64
        assert batch.skip_messages == ()
        for image, label, path in zip(batch.images, batch.labels, batch.paths, strict=True):
            assert torch.equal(image, PLAIN(read_rgb(root / path)))
            assert int(label) == {sample.path: sample.label for sample in samples}[path]


def test_loader_same_bytes_for_any_num_workers(root: Path) -> None:
    order = epoch_permutation(0, "head", 1, COUNT)
    runs = []
    for num_workers in (0, 1, 2, 3):
        with open_loader(root, num_workers) as loader:
            runs.append(list(loader.batches(order, rng_key=(0, "head", 1), merge_last=True)))
            assert count_workers() == num_workers
        assert count_workers() == 0
    for batches in runs[1:]:
        assert len(batches) == len(runs[0])
        assert all(same(one, other) for one, other in zip(runs[0], batches, strict=True))


def test_augmentation_depends_on_key_and_path_only(root: Path) -> None:
    loader = open_loader(root, 0)

    def view(order: list[int], *rng_key: int | str) -> dict[str, torch.Tensor]:
        batches = loader.batches(order, rng_key=rng_key)
        return {path: image for batch in batches for path, image in zip(batch.paths, batch.images, strict=True)}

    expected = view(list(range(COUNT)), 0, "head", 1)
    for path, image in expected.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.derive_seed(0, "head", 1, path))
            assert torch.equal(STRONG(read_rgb(root / path)), image)
    part = view([7, 3, 19], 0, "head", 1)
    assert all(torch.equal(part[path], expected[path]) for path in part)
    twice = [image for batch in loader.batches([2, 2], rng_key=(0,)) for image in batch.images]
    assert torch.equal(*twice)
    for other in ((0, "head", 2), (1, "head", 1), (0, "all", 1)):
        changed = view(list(range(COUNT)), *other)
        assert sum(not torch.equal(changed[path], expected[path]) for path in expected) > COUNT - 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_preserves_caller_rng_state(root: Path, num_workers: int) -> None:
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()
    with open_loader(root, num_workers) as loader:
        for _ in loader.batches(rng_key=(0,)):
            assert torch.equal(torch.get_rng_state(), states[0])
        list(loader.batches())
    if num_workers:
        assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state(legacy=False)["state"]["key"] == states[2]).all()


def test_merge_last_joins_single_image(root: Path) -> None:
    for size, plain, merged in (
        (11, [11, 11, 1], [11, 12]),
        (4, [4] * 5 + [3], [4] * 5 + [3]),
        (1, [1] * 23, [1] * 23),
    ):
        loader = open_loader(root, 0, batch_size=size)
        assert sizes(loader.batches(rng_key=(0,))) == plain
        assert sizes(loader.batches(rng_key=(0,), merge_last=True)) == merged
        assert (loader.count_batches(), loader.count_batches(merge_last=True)) == (len(plain), len(merged))
    loader = open_loader(root, 0, batch_size=11)
    assert sizes(loader.batches([3], rng_key=(0,), merge_last=True)) == [1]
    assert [count_batches(n, 11, merge_last=True) for n in (0, 1, 11, 12, 13)] == [0, 1, 1, 1, 2]
    assert [count_batches(n, 11) for n in (0, 1, 11, 12, 13)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_starts_at_batch(root: Path, num_workers: int) -> None:
    order = epoch_permutation(0, "a", 1, COUNT)
    with open_loader(root, num_workers, batch_size=11) as loader:
        for merge in (False, True):
            expected = list(loader.batches(order, rng_key=(0,), merge_last=merge))
            for start in range(len(expected) + 2):
                rest = list(loader.batches(order, rng_key=(0,), start=start, merge_last=merge))
                assert len(rest) == max(0, len(expected) - start)
                assert all(same(one, other) for one, other in zip(expected[start:], rest, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_loader_abandoned_pass_has_no_effect(root: Path, num_workers: int) -> None:
    with open_loader(root, num_workers, batch_size=2) as loader:
        expected = list(loader.batches(rng_key=(0,)))
        for taken in range(4):
            abandoned = loader.batches(list(reversed(range(COUNT))), rng_key=(1,))
            for _ in range(taken):
                next(abandoned)
            again = list(loader.batches(rng_key=(0,)))
            assert len(again) == len(expected)
            assert all(same(one, other) for one, other in zip(expected, again, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_new_pass_ends_previous(root: Path, num_workers: int) -> None:
    with open_loader(root, num_workers, batch_size=2) as loader:
        first = loader.batches(rng_key=(0,))
        next(first)
        next(loader.batches(rng_key=(0,)))
        with pytest.raises(RuntimeError, match="this pass has ended"):
            next(first)
        last = loader.batches(rng_key=(0,))
        next(last)
    with pytest.raises(RuntimeError, match="this pass has ended"):
        next(last)


def test_loader_workers_persist_until_close(root: Path) -> None:
    loader = open_loader(root, 2)
    list(loader.batches(rng_key=(0,)))
    first = {process.pid for process in multiprocessing.active_children()}
    list(loader.batches(rng_key=(0,)))
    assert {process.pid for process in multiprocessing.active_children()} == first
    assert len(first) == 2
    loader.close()
    loader.close()
    assert count_workers() == 0
    assert sizes(loader.batches(rng_key=(0,))) == [4] * 5 + [3]
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_corrupt_image_raises(corrupt_root: Path, num_workers: int) -> None:
    path = corrupt_root / "5-a.png"
    with pytest.raises(CorruptImageError) as expected:
        read_rgb(path)
    with open_loader(corrupt_root, num_workers) as loader:
        batches = loader.batches(rng_key=(0,))
        assert next(batches).paths[0] == "0-a.png"
        with pytest.raises(CorruptImageError) as error:
            next(batches)
        assert str(error.value) == str(expected.value)
        assert error.value.messages == expected.value.messages
        assert str(path) in str(error.value)
        assert sizes(loader.batches([0, 1], rng_key=(0,))) == [2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_are_skipped_and_reported(root: Path, corrupt_root: Path, num_workers: int) -> None:
    with open_loader(root, 0) as loader:
        expected = list(loader.batches(rng_key=(0,)))
    with open_loader(corrupt_root, num_workers, "skip") as loader:
        rest = list(loader.batches(rng_key=(0,)))
    assert [len(batch.paths) for batch in rest] == [4, 3, 0, 4, 4, 3]
    assert [len(batch.skip_messages) for batch in rest] == [0, 1, 4, 0, 0, 0]
    assert rest[1].skip_messages[0].startswith(f"{corrupt_root}/5-a.png: is truncated (")
    assert rest[1].paths == ("4-a.png", "6-a.png", "7-a.png")
    assert torch.equal(rest[1].images, expected[1].images[[0, 2, 3]])
    assert torch.equal(rest[1].labels, expected[1].labels[[0, 2, 3]])
    assert rest[2].images.shape[:2] == (0, 3)
    assert rest[2].images.dtype == torch.uint8
    assert rest[2].labels.shape == (0,)


def test_loader_no_warning_above_core_count(root: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ImageLoader(
            list_samples(), PLAIN, 4, LoaderConfig(root, "error", runtime.count_cores() + 1, pin_memory=True)
        ) as loader:
            assert sum(sizes(loader.batches())) == COUNT
        with ImageLoader(list_samples(), PLAIN, 4, LoaderConfig(root, "error", 0, pin_memory=True)) as loader:
            assert sum(sizes(loader.batches())) == COUNT
    assert [str(warning.message) for warning in caught] == []


def test_resolve_num_workers_counts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_num_workers(0) == 0
    assert resolve_num_workers(40) == 40
    for cores, expected in ((3, 3), (64, 8)):
        monkeypatch.setattr(runtime, "count_cores", lambda cores=cores: cores)
        assert resolve_num_workers(None) == expected


def test_epoch_permutation() -> None:
    order = epoch_permutation(0, "head", 1, 100)
    assert sorted(order) == list(range(100))
    torch.manual_seed(3)
    assert epoch_permutation(0, "head", 1, 100) == order
    others = [
        epoch_permutation(1, "head", 1, 100),
        epoch_permutation(0, "all", 1, 100),
        epoch_permutation(0, "head", 2, 100),
    ]
    assert all(other != order for other in others)
    assert epoch_permutation(0, "head", 1, 0) == []


def test_measure_normalization_mean_and_std(root: Path) -> None:
    with ImageLoader(list_samples(), PLAIN, 4, LoaderConfig(root, "error", 0)) as loader:
        mean, std = measure_normalization(loader)
        pixels = np.concatenate([batch.images.numpy() for batch in loader.batches()]).astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-12)
    with ImageLoader(list_samples()[::-1], PLAIN, 7, LoaderConfig(root, "error", 2)) as loader:
        assert measure_normalization(loader) == (mean, std)


def test_measure_normalization_errors(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "b.png")
    with pytest.raises(DataError) as error:
        measure_normalization(ImageLoader([Sample("a.png", 0)], PLAIN, 4, LoaderConfig(tmp_path, "skip", 0)))
    assert str(error.value) == (
        "data.normalize: no image could be read to measure mean and std; give mean and std, or use pretrained"
    )
    with pytest.raises(DataError) as error:
        measure_normalization(ImageLoader([Sample("b.png", 0)], PLAIN, 4, LoaderConfig(tmp_path, "skip", 0)))
    assert str(error.value) == (
        "data.normalize: all pixels of a channel are equal, so its std is 0; give mean and std, or use pretrained"
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_stream_is_lazy(root: Path, num_workers: int) -> None:
    taken = 0

    def come() -> Iterator[Sample]:
        nonlocal taken
        for sample in list_samples():
            taken += 1
            yield sample

    plain = ImageLoader(list_samples(), PLAIN, 4, LoaderConfig(root, "error", 0))
    with ImageLoader((), PLAIN, 4, LoaderConfig(root, "error", num_workers)) as loader:
        stream = loader.stream(come())
        first = next(stream)
        assert taken <= 4 * (1 + 2 * num_workers)
        assert all(same(one, other) for one, other in zip([first, *stream], plain.batches(), strict=True))
        assert sizes(loader.stream(iter(()))) == []


def test_skipped_image_has_path_and_reason(corrupt_root: Path) -> None:
    loader = ImageLoader((), PLAIN, 4, LoaderConfig(corrupt_root, "skip", 1))
    with loader:
        (batch,) = loader.stream(iter(list_samples()[4:7]))
    (skipped,) = batch.skipped
    assert skipped.path == "5-a.png"
    assert skipped.reason.startswith("is truncated (")
    assert (
        skipped.message
        == f"{corrupt_root}/5-a.png: {skipped.reason}; replace it, remove it, or set data.on_corrupt_image: skip"
    )


def test_loader_decodes_large_jpegs_at_reduced_size(tmp_path: Path, photos: tuple[Image.Image, Image.Image]) -> None:
    photos[0].resize((1280, 854)).save(tmp_path / "a.jpg")
    (batch,) = ImageLoader([Sample("a.jpg", 0)], PLAIN, 4, LoaderConfig(tmp_path, "error", 0)).batches()
    assert torch.equal(batch.images[0], PLAIN(read_image(tmp_path / "a.jpg", 64)))
    assert not torch.equal(batch.images[0], PLAIN(read_rgb(tmp_path / "a.jpg")))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_batches_are_channels_last(root: Path, num_workers: int) -> None:
    with open_loader(root, num_workers) as loader:
        for batch in loader.batches(rng_key=(0,)):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
