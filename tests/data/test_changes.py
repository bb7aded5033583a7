from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ftcli.data.batches import Batch
from ftcli.data.changes import Changing, apply_changes, build_change
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import build_train_transform
from ftcli.recipe import schema
from ftcli.results import Preprocessing

PRE = Preprocessing(48, 56, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
ACROSS = schema.RandomHorizontalFlip(name="random_horizontal_flip")
OVER = schema.RandomVerticalFlip(name="random_vertical_flip", p=0.3)
ERASE = schema.RandomErasing(name="random_erasing", p=0.6)
TURN = schema.RandomRotation(name="random_rotation")
LISTS: dict[str, tuple[schema.Transform, ...]] = {
    "both flips": (ACROSS, OVER),
    "an erasure between": (ACROSS, ERASE, OVER, ERASE),
    "a turn in the middle": (ERASE, ACROSS, TURN, OVER, ERASE),
    "a turn at the end": (ACROSS, TURN),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: tuple[Image.Image, Image.Image]) -> Path:
    root = tmp_path_factory.mktemp("pieces")
    for number in range(12):
        photos[number % 2].crop((40 * number, 9 * number, 40 * number + 90, 9 * number + 70)).save(
            root / f"{number}.png"
        )
    return root


@pytest.mark.parametrize("transforms", LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_left_to_the_device_gives_the_same_pixels(
    folder: Path, transforms: tuple[schema.Transform, ...], num_workers: int
) -> None:
    transform = build_train_transform(PRE, transforms)
    samples = [Sample(f"{number}.png", 0) for number in range(12)]
    files = ImageFiles(folder, "error", num_workers)
    with Loader(samples, transform, 5, files) as here, Loader(samples, transform.defer(), 5, files) as later:
        moved = False
        for epoch in range(3):
            for whole, left in zip(here.batches(draw=(0, epoch)), later.batches(draw=(0, epoch)), strict=True):
                assert whole.changes == ()
                assert len(left.changes) == len(transform.changes)
                before = left.values[0].clone()
                made = apply_changes(left.values[0], [change.to(torch.device("cpu")) for change in left.changes])
                assert torch.equal(made, whole.images)
                assert torch.equal(left.values[0], before)
                moved = moved or not torch.equal(made, before)
        assert moved == bool(transform.changes)


def test_only_what_comes_last_is_left() -> None:
    kinds = {name: [change.kind for change in build_train_transform(PRE, own).changes] for name, own in LISTS.items()}
    assert kinds == {
        "both flips": ["across", "over"],
        "an erasure between": ["across", "erase", "over", "erase"],
        "a turn in the middle": ["over", "erase"],
        "a turn at the end": [],
    }


def test_changes_are_drawn_as_torchvision_draws_them(photo: Image.Image) -> None:
    theirs: dict[Changing, v2.Transform] = {
        ACROSS: v2.RandomHorizontalFlip(0.5),
        OVER: v2.RandomVerticalFlip(0.3),
        ERASE: v2.Compose([v2.PILToTensor(), v2.RandomErasing(0.6), v2.ToPILImage()]),
    }
    before = photo.tobytes()
    with torch.random.fork_rng(devices=[]):
        for part, model in theirs.items():
            change = build_change(part)
            for seed in range(12):
                torch.manual_seed(seed)
                expected, state = model(photo), torch.get_rng_state()
                torch.manual_seed(seed)
                assert change.apply(photo, change.draw(photo.size)).tobytes() == expected.tobytes()
                assert torch.equal(torch.get_rng_state(), state)
    assert photo.tobytes() == before


def test_a_batch_without_images_has_no_changes(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    transform = build_train_transform(PRE, LISTS["both flips"]).defer()
    made: list[Batch] = list(
        Loader([Sample("a.png", 0)], transform, 4, ImageFiles(tmp_path, "skip", 0)).batches(draw=(0,))
    )
    assert [(len(batch.paths), batch.changes) for batch in made] == [(0, ())]
    assert apply_changes(made[0].values[0], made[0].changes).shape == (0, 3, 48, 48)


def test_one_by_one_a_deferred_transform_makes_every_change(photo: Image.Image) -> None:
    transform = build_train_transform(PRE, LISTS["an erasure between"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = transform(photo)
        torch.manual_seed(0)
        assert torch.equal(transform.defer()(photo), whole)
