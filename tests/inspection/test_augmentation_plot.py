"""Tests of the plot of augmented views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcli.data.batches import Batch
from ftcli.data.loader import ImageLoader
from ftcli.data.samples import Sample
from ftcli.errors import DataError
from ftcli.inspection.augmentation_plot import choose_samples, list_epoch_views, plot_augmentation
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Pixels
from ftcli.planning import plan_recipe
from ftcli.recipe.loading import read_recipe
from ftcli.results import NullReporter
from ftcli.runtime import RngKey
from ftcli.training.stage_data import StageData
from tests.conftest import Ftcli, LibraryLog
from tests.inspection.conftest import read_png


def test_choose_samples_covers_classes() -> None:
    def choose(classes: int, images: int) -> tuple[Sample, ...]:
        return choose_samples([Sample(f"{label}/{n}", label) for label in range(classes) for n in range(images)])

    assert [sample.path for sample in choose(2, 8)] == ["0/1", "0/3", "0/5", "0/7", "1/1", "1/3", "1/5", "1/7"]
    assert Counter(sample.label for sample in choose(3, 9)) == {0: 3, 1: 3, 2: 2}
    assert [sample.label for sample in choose(10, 5)] == list(range(10))
    assert len({sample.label for sample in choose(1000, 2)}) == 12
    assert len(choose(2, 3)) == 6


@pytest.mark.parametrize(
    ("overrides", "views"),
    [
        (["stages.head.cache=off"], [("head", 1), ("head", 2), ("all", 1), ("all", 2)]),
        (
            ["stages.head.cache={views: 2}", "stages.head.epochs=4"],
            [("head", 1), ("head", 2), ("head", 1), ("head", 2), ("all", 1)],
        ),
        (["stages.head.epochs=5"], [("head", 1), ("head", 2), ("head", 3), ("head", 4), ("head", 1)]),
        (
            ["stages.head.cache={views: all}", "stages.head.epochs=5"],
            [("head", 1), ("head", 2), ("head", 3), ("head", 4), ("head", 5)],
        ),
    ],
    ids=["uncached", "two_views", "default_views", "all_views"],
)
def test_plot_augmentation_shows_views_of_training(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, overrides: list[str], views: list[tuple[str, int]]
) -> None:
    images: dict[tuple[RngKey, str], Pixels] = {}
    training_keys: list[RngKey] = []
    original_batches, original_key = ImageLoader.batches, StageData.key_for_epoch

    def record_images(self: ImageLoader, indices: Any = None, rng_key: Any = None, **options: Any) -> Iterator[Batch]:
        for batch in original_batches(self, indices, rng_key, **options):
            if rng_key is not None:
                for path, image in zip(batch.paths, batch.images, strict=True):
                    images[rng_key, path] = image.permute(1, 2, 0).numpy()
            yield batch

    def record_key(self: StageData, epoch: int) -> RngKey | None:
        rng_key = original_key(self, epoch)
        assert rng_key is not None
        training_keys.append(rng_key)
        return rng_key

    recipe_file = read_recipe(Path("r.yaml"), overrides)
    monkeypatch.setenv("FTCLI_CACHE", str(work_dir / "cache"))  # empty, so that training reads every view
    with monkeypatch.context() as patched:
        patched.setattr(ImageLoader, "batches", record_images)
        patched.setattr(StageData, "key_for_epoch", record_key)
        assert ftcli("train", "r.yaml", *(word for override in overrides for word in ("--set", override))).code == 0
    assert [rng_key[1:] for rng_key in training_keys[:5]] == views
    assert [view.rng_key for view in list_epoch_views(plan_recipe(recipe_file), 2)] == training_keys[:5]
    plot_augmentation(recipe_file, Path("out.png"), NullReporter())
    plot = read_png(Path("out.png"))
    column = 32 * 3 + (120 - 96) + 8
    first = MARGIN + 2 * LINE_HEIGHT + 16 + LINE_HEIGHT
    paths = {path for _, path in images}
    num_china = 0
    for row in range(8):
        cells = [
            plot[first + row * 128 : first + row * 128 + 96 : 3, MARGIN + n * column : MARGIN + n * column + 96 : 3]
            for n in range(1 + len(views))
        ]
        (path,) = [
            path
            for path in paths
            if all(
                np.array_equal(images[rng_key, path], cell)
                for rng_key, cell in zip(training_keys[:5], cells[1:], strict=True)
            )
        ]
        num_china += path.split("/")[1] == ("china" if row < 4 else "flower")
    assert num_china == 8


def test_plot_augmentation_is_deterministic(work_dir: Path) -> None:
    recipe_file = read_recipe(Path("r.yaml"))
    for name in ("one.png", "two.png"):
        plot_augmentation(recipe_file, Path(name), NullReporter())
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert sorted(path.name for path in work_dir.iterdir()) == ["one.png", "r.yaml", "two.png"]


def test_plot_augmentation_skips_or_rejects_corrupt_images(work_dir: Path, photo_folder: Path, log: LibraryLog) -> None:
    for label in ("a", "b"):
        for number in range(4):
            target = Path(f"few/train/{label}/{number}.jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((photo_folder / f"train/china/{number}.jpg").read_bytes())
    with_error = read_recipe(Path("r.yaml"), ["data.root=few"])
    with_skip = read_recipe(Path("r.yaml"), ["data.root=few", "data.on_corrupt_image=skip"])
    plot_augmentation(with_error, Path("out.png"), NullReporter())
    full_plot = read_png(Path("out.png"))
    Path("out.png").unlink()
    for path in Path("few/train/a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_augmentation(with_error, Path("out.png"), NullReporter())
    assert "is empty (0 bytes)" in str(error.value)
    assert not Path("out.png").exists()
    plot_augmentation(with_skip, Path("out.png"), NullReporter())
    assert all(message.startswith("skipped: few/train/a/") for message in log.warnings)
    rows = (full_plot.shape[0] - read_png(Path("out.png")).shape[0]) // 128
    assert rows == len(log.warnings) > 0
    for path in Path("few/train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_augmentation(with_skip, Path("out.png"), NullReporter())
    assert str(error.value).startswith("--plot-augment: none of 4 images can be read; the first: few/train/a/")
