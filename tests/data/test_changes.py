from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ftcli.data.batches import Batch
from ftcli.data.changes import BatchTransformConfig, apply_batch_transforms, build_batch_transform
from ftcli.data.dataset import Sample
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.transforms import build_train_transform
from ftcli.recipe import schema
from ftcli.results import Preprocessing

PRE = Preprocessing(48, 56, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
HORIZONTAL = schema.RandomHorizontalFlip(name="random_horizontal_flip")
VERTICAL = schema.RandomVerticalFlip(name="random_vertical_flip", p=0.3)
ERASE = schema.RandomErasing(name="random_erasing", p=0.6)
ROTATE = schema.RandomRotation(name="random_rotation")
LISTS: dict[str, tuple[schema.Transform, ...]] = {
    "both flips": (HORIZONTAL, VERTICAL),
    "an erasure between": (HORIZONTAL, ERASE, VERTICAL, ERASE),
    "a turn in the middle": (ERASE, HORIZONTAL, ROTATE, VERTICAL, ERASE),
    "a turn at the end": (HORIZONTAL, ROTATE),
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
def test_deferred_transforms_give_same_pixels(
    folder: Path, transforms: tuple[schema.Transform, ...], num_workers: int
) -> None:
    transform = build_train_transform(PRE, transforms)
    samples = [Sample(f"{number}.png", 0) for number in range(12)]
    files = LoaderConfig(folder, "error", num_workers)
    with (
        ImageLoader(samples, transform, 5, files) as here,
        ImageLoader(samples, transform.defer_to_device(), 5, files) as later,
    ):
        moved = False
        for epoch in range(3):
            for expected, deferred in zip(
                here.batches(rng_key=(0, epoch)), later.batches(rng_key=(0, epoch)), strict=True
            ):
                assert expected.transform_params == ()
                assert len(deferred.transform_params) == len(transform.batch_transforms)
                before = deferred.inputs[0].clone()
                made = apply_batch_transforms(
                    deferred.inputs[0], [change.to(torch.device("cpu")) for change in deferred.transform_params]
                )
                assert torch.equal(made, expected.images)
                assert torch.equal(deferred.inputs[0], before)
                moved = moved or not torch.equal(made, before)
        assert moved == bool(transform.batch_transforms)


def test_only_trailing_transforms_are_deferred() -> None:
    kinds = {
        name: [change.kind for change in build_train_transform(PRE, own).batch_transforms]
        for name, own in LISTS.items()
    }
    assert kinds == {
        "both flips": ["across", "over"],
        "an erasure between": ["across", "erase", "over", "erase"],
        "a turn in the middle": ["over", "erase"],
        "a turn at the end": [],
    }


def test_batch_transforms_match_torchvision(photo: Image.Image) -> None:
    torchvision_transforms: dict[BatchTransformConfig, v2.Transform] = {
        HORIZONTAL: v2.RandomHorizontalFlip(0.5),
        VERTICAL: v2.RandomVerticalFlip(0.3),
        ERASE: v2.Compose([v2.PILToTensor(), v2.RandomErasing(0.6), v2.ToPILImage()]),
    }
    before = photo.tobytes()
    with torch.random.fork_rng(devices=[]):
        for part, model in torchvision_transforms.items():
            change = build_batch_transform(part)
            for seed in range(12):
                torch.manual_seed(seed)
                expected, state = model(photo), torch.get_rng_state()
                torch.manual_seed(seed)
                assert change.apply(photo, change.make_params(photo.size)).tobytes() == expected.tobytes()
                assert torch.equal(torch.get_rng_state(), state)
    assert photo.tobytes() == before


def test_empty_batch_has_no_transform_params(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    transform = build_train_transform(PRE, LISTS["both flips"]).defer_to_device()
    made: list[Batch] = list(
        ImageLoader([Sample("a.png", 0)], transform, 4, LoaderConfig(tmp_path, "skip", 0)).batches(rng_key=(0,))
    )
    assert [(len(batch.paths), batch.transform_params) for batch in made] == [(0, ())]
    assert apply_batch_transforms(made[0].inputs[0], made[0].transform_params).shape == (0, 3, 48, 48)


def test_deferred_transform_called_on_image_applies_all(photo: Image.Image) -> None:
    transform = build_train_transform(PRE, LISTS["an erasure between"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = transform(photo)
        torch.manual_seed(0)
        assert torch.equal(transform.defer_to_device()(photo), expected)
