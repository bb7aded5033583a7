from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from torch import Tensor
from torchvision.transforms import v2

from ftcli.data.batches import Batch
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import (
    PRESETS,
    BatchTransformConfig,
    Normalizer,
    apply_batch_transforms,
    build_batch_transform,
    build_eval_transform,
    build_train_transform,
)
from ftcli.recipe import schema
from ftcli.results import Preprocessing

PRE = Preprocessing(96, 110, "crop", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHARP = Preprocessing(64, 64, "squash", "nearest", PRE.mean, PRE.std)


def build(*transforms: dict[str, Any]) -> tuple[schema.Transform, ...]:
    return TypeAdapter(schema.Transforms).validate_python(list(transforms))


def augment(photo: Image.Image, pre: Preprocessing, *transforms: dict[str, Any], num_draws: int = 8) -> Tensor:
    """Return the transformed photo under seeds 0, 1, 2 …"""
    transform = build_train_transform(pre, build(*transforms))
    views = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(num_draws):
            torch.manual_seed(seed)
            views.append(transform(photo))
    return torch.stack(views)


def as_image(tensor: Tensor) -> Image.Image:
    return Image.fromarray(tensor.permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(160, 106), (106, 160), (96, 96), (30, 20), (1, 400), (400, 1)])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_eval_transform_output_shape(photos: tuple[Image.Image, ...], resize: str, size: tuple[int, int]) -> None:
    output = build_eval_transform(Preprocessing(96, 110, resize, "bicubic", PRE.mean, PRE.std))(photos[0].resize(size))
    assert output.dtype == torch.uint8
    assert output.shape == (3, 96, 96)


def test_eval_transform_resize_and_center_crop(photo: Image.Image) -> None:
    resized = photo.resize((166, 110), Image.Resampling.BICUBIC)
    expected = resized.crop((35, 7, 35 + 96, 7 + 96))
    assert torch.equal(build_eval_transform(PRE)(photo), as_tensor(expected))


def test_eval_transform_squash(photo: Image.Image) -> None:
    pre = Preprocessing(96, 110, "squash", "bilinear", PRE.mean, PRE.std)
    expected = photo.resize((110, 110), Image.Resampling.BILINEAR).crop((7, 7, 103, 103))
    assert torch.equal(build_eval_transform(pre)(photo), as_tensor(expected))


def test_eval_transform_pad(photo: Image.Image) -> None:
    pre = Preprocessing(96, 96, "pad", "bicubic", PRE.mean, PRE.std)
    output = build_eval_transform(pre)(photo)
    assert torch.equal(output[:, 16:80], as_tensor(photo.resize((96, 64), Image.Resampling.BICUBIC)))
    assert not output[:, :16].any()
    assert not output[:, 80:].any()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_eval_transform_interpolation(photo: Image.Image, interpolation: str) -> None:
    pre = Preprocessing(64, 64, "squash", interpolation, PRE.mean, PRE.std)
    expected = as_tensor(photo.resize((64, 64), Image.Resampling[interpolation.upper()]))
    assert torch.equal(build_eval_transform(pre)(photo), expected)
    cropped = build_train_transform(pre, build({"name": "random_resized_crop", "scale": [1.0, 1.0]}))
    assert cropped(photo).shape == (3, 64, 64)


def test_presets_match_schema() -> None:
    assert set(PRESETS) == set(get_args(schema.Preset))
    names = {preset: [transform.name for transform in transforms] for preset, transforms in PRESETS.items()}
    assert names == {
        "none": [],
        "flips": ["random_horizontal_flip", "random_vertical_flip"],
        "light": ["random_resized_crop", "random_horizontal_flip"],
        "standard": ["random_resized_crop", "random_horizontal_flip"],
        "strong": ["random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erasing"],
    }
    crops = [PRESETS[preset][0] for preset in ("light", "standard", "strong")]
    assert [crop.scale for crop in crops if isinstance(crop, schema.RandomResizedCrop)] == [
        (0.8, 1.0),
        (0.08, 1.0),
        (0.08, 1.0),
    ]


@pytest.mark.parametrize("preset", get_args(schema.Preset))
def test_presets_equal_their_lists(photo: Image.Image, preset: schema.Preset) -> None:
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            by_name = build_train_transform(PRE, preset)(photo)
            torch.manual_seed(seed)
            by_list = build_train_transform(PRE, PRESETS[preset])(photo)
        assert by_name.shape == (3, 96, 96)
        assert by_name.dtype == torch.uint8
        assert torch.equal(by_name, by_list)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_train_transform_without_crop_resizes_as_eval(photo: Image.Image, resize: str) -> None:
    pre = Preprocessing(96, 110, resize, "bicubic", PRE.mean, PRE.std)
    plain = build_eval_transform(pre)(photo)
    assert torch.equal(build_train_transform(pre, "none")(photo), plain)
    flipped = build_train_transform(pre, build({"name": "random_horizontal_flip", "p": 1.0}))
    assert torch.equal(flipped(photo), plain.flip(2))


def test_random_crop_uses_full_image(photo: Image.Image) -> None:
    ratio = photo.width / photo.height
    transform = build_train_transform(
        PRE, build({"name": "random_resized_crop", "scale": [1.0, 1.0], "ratio": [ratio, ratio]})
    )
    assert torch.equal(transform(photo), as_tensor(photo.resize((96, 96), Image.Resampling.BICUBIC)))


def test_train_transform_preserves_order(photo: Image.Image) -> None:
    turn = {"name": "random_rotation", "degrees": 90.0}
    erase = {"name": "random_erasing", "p": 1.0, "scale": [0.3, 0.3]}
    first, last = augment(photo, SHARP, turn, erase), augment(photo, SHARP, erase, turn)
    assert not torch.equal(first, last)
    assert first.shape == last.shape


# For each parameter, the transform with two values. `more` must change the pixels more.
EFFECTS: list[tuple[type[schema.RecipeModel], str, dict[str, Any], dict[str, Any]]] = [
    (schema.RandomResizedCrop, "scale", {"scale": [1.0, 1.0], "ratio": [1.5, 1.51]}, {"scale": [0.1, 0.2]}),
    (
        schema.RandomResizedCrop,
        "ratio",
        {"ratio": [1.5, 1.51], "scale": [0.99, 1.0]},
        {"ratio": [0.3, 0.4], "scale": [0.99, 1.0]},
    ),
    (schema.RandomHorizontalFlip, "p", {"p": 0.0}, {"p": 1.0}),
    (schema.RandomVerticalFlip, "p", {"p": 0.0}, {"p": 1.0}),
    (schema.RandomRotation, "degrees", {"degrees": 1.0}, {"degrees": 60.0}),
    (schema.ColorJitter, "brightness", {"brightness": 0.0}, {"brightness": 0.9}),
    (schema.ColorJitter, "contrast", {"contrast": 0.0}, {"contrast": 0.9}),
    (schema.ColorJitter, "saturation", {"saturation": 0.0}, {"saturation": 0.9}),
    (schema.ColorJitter, "hue", {"hue": 0.0}, {"hue": 0.4}),
    (schema.RandAugment, "num_ops", {"num_ops": 1}, {"num_ops": 6}),
    (schema.RandAugment, "magnitude", {"magnitude": 0}, {"magnitude": 28}),
    (schema.RandomErasing, "p", {"p": 0.0}, {"p": 1.0}),
    (schema.RandomErasing, "scale", {"p": 1.0, "scale": [0.02, 0.03]}, {"p": 1.0, "scale": [0.3, 0.4]}),
]


def test_transform_parameters_are_all_covered() -> None:
    union = get_args(schema.Transform)[0]
    known = {(part, field) for part in get_args(union) for field in part.model_fields if field != "name"}
    assert {(part, field) for part, field, _, _ in EFFECTS} == known


@pytest.mark.parametrize(("part", "field", "less", "more"), EFFECTS)
@pytest.mark.covers(
    "data.augment.scale",
    "data.augment.ratio",
    "data.augment.p",
    "data.augment.degrees",
    "data.augment.brightness",
    "data.augment.contrast",
    "data.augment.saturation",
    "data.augment.hue",
    "data.augment.num_ops",
    "data.augment.magnitude",
)
def test_transform_parameters_have_effect(
    photo: Image.Image, part: type[schema.RecipeModel], field: str, less: dict[str, Any], more: dict[str, Any]
) -> None:
    name = get_args(part.model_fields["name"].annotation)[0]
    no_jitter = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} if part is schema.ColorJitter else {}
    plain = build_eval_transform(SHARP)(photo).float()
    near, far = (
        (augment(photo, SHARP, {"name": name, **no_jitter, **values}, num_draws=16).float() - plain).abs().mean()
        for values in (less, more)
    )
    assert far > near * 1.3 + 1, f"{field}: {near:.2f} and {far:.2f}"


def test_flips_direction(photo: Image.Image) -> None:
    plain = as_image(build_eval_transform(SHARP)(photo))
    horizontal = augment(photo, SHARP, {"name": "random_horizontal_flip", "p": 1.0}, num_draws=1)[0]
    vertical = augment(photo, SHARP, {"name": "random_vertical_flip", "p": 1.0}, num_draws=1)[0]
    assert torch.equal(horizontal, as_tensor(ImageOps.mirror(plain)))
    assert torch.equal(vertical, as_tensor(ImageOps.flip(plain)))


def test_flip_probability(photo: Image.Image) -> None:
    plain = build_eval_transform(SHARP)(photo)
    output = augment(photo, SHARP, {"name": "random_horizontal_flip", "p": 0.25}, num_draws=200)
    flipped = sum(not torch.equal(one, plain) for one in output)
    assert 30 <= flipped <= 70  # 50 expected, standard deviation 6


def test_erased_and_rotated_areas_are_black(photo: Image.Image) -> None:
    white = Image.new("RGB", photo.size, "white")
    erased = augment(white, SHARP, {"name": "random_erasing", "p": 1.0, "scale": [0.2, 0.2]})
    assert set(erased.flatten().tolist()) == {0, 255}
    assert 0.1 < float((erased == 0).float().mean()) < 0.3
    rotated = augment(white, SHARP, {"name": "random_rotation", "degrees": 45.0})
    assert (rotated[:, :, 0, 0] == 0).float().mean() > 0.5
    assert (rotated[:, :, 32, 32] == 255).all()


def test_train_transform_uses_global_generator(photo: Image.Image) -> None:
    transform = build_train_transform(PRE, "strong")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = transform(photo), transform(photo)
        torch.manual_seed(5)
        assert torch.equal(transform(photo), first)
        assert not torch.equal(first, second)


def test_transforms_pickle(photo: Image.Image) -> None:
    for pre in (PRE, Preprocessing(96, 96, "pad", "bicubic", PRE.mean, PRE.std)):
        assert torch.equal(
            pickle.loads(pickle.dumps(build_eval_transform(pre)))(photo), build_eval_transform(pre)(photo)
        )
        pickle.loads(pickle.dumps(build_train_transform(pre, "strong")))(photo)


def test_train_transform_does_not_modify_input(photo: Image.Image) -> None:
    before = photo.tobytes()
    augment(photo, PRE, {"name": "random_erasing", "p": 1.0}, {"name": "color_jitter"})
    assert photo.tobytes() == before


def test_normalizer_matches_torchvision(photos: tuple[Image.Image, ...]) -> None:
    images = torch.stack([as_tensor(photo) for photo in photos]).contiguous(memory_format=torch.channels_last)
    output = Normalizer(PRE, torch.device("cpu"))(images)
    expected = v2.functional.normalize(images.float() / 255, list(PRE.mean), list(PRE.std))
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8


def test_eval_transform_extreme_aspect_ratio() -> None:
    pre = Preprocessing(64, 72, "crop", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = Image.new("RGB", (100_001, 2), "white")
    image.paste("black", (50_000, 0, 100_001, 2))
    pixels = build_eval_transform(pre)(image)
    assert pixels.shape == (3, 64, 64)
    assert pixels[0, 32].tolist()[::63] == [255, 0]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("preset", ["none", "flips", "standard"])
def test_train_transform_grey_equals_rgb(
    photo: Image.Image, resize: str, interpolation: str, preset: schema.Preset
) -> None:
    transform = build_train_transform(Preprocessing(64, 72, resize, interpolation, PRE.mean, PRE.std), preset)
    grey = photo.convert("L")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        output = transform(grey)
        torch.manual_seed(3)
        assert torch.equal(transform(grey.convert("RGB")), output)


def test_transform_fingerprint_covers_all_settings() -> None:
    flip = {"name": "random_horizontal_flip"}
    others = [
        dataclasses.replace(PRE, image_size=95),
        dataclasses.replace(PRE, resize_size=111),
        dataclasses.replace(PRE, resize="pad"),
        dataclasses.replace(PRE, interpolation="bilinear"),
    ]
    built = [build_eval_transform(pre) for pre in (PRE, *others)]
    built += [
        build_train_transform(PRE, build(*transforms))
        for transforms in (
            [flip],
            [{**flip, "p": 0.4}],
            [{"name": "random_rotation"}, flip],
            [flip, {"name": "random_rotation"}],
        )
    ]
    assert len({transform.fingerprint for transform in built}) == len(built)
    assert {transform.deterministic_fingerprint for transform in built[5:]} == {built[0].deterministic_fingerprint}
    assert len({transform.deterministic_fingerprint for transform in built[:5]}) == 5
    # Mean and std are applied afterwards, and a preset equals its list.
    scaled = dataclasses.replace(PRE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert (
        build_eval_transform(scaled).fingerprint
        == built[0].fingerprint
        == build_train_transform(PRE, "none").fingerprint
    )
    assert build_train_transform(PRE, PRESETS["strong"]).fingerprint == build_train_transform(PRE, "strong").fingerprint
    fingerprint = json.loads(built[0].fingerprint)
    assert (fingerprint["pillow"], fingerprint["torchvision"]) == (PIL.__version__, torchvision.__version__)


def test_is_random() -> None:
    assert not build_eval_transform(PRE).is_random
    assert [build_train_transform(PRE, preset).is_random for preset in PRESETS] == [False, True, True, True, True]
    assert build_train_transform(PRE, build({"name": "color_jitter"})).is_random


def test_min_decode_size() -> None:
    def find(pre: Preprocessing, *transforms: dict[str, Any]) -> int | None:
        return build_train_transform(pre, build(*transforms)).min_decode_size

    crop = {"name": "random_resized_crop"}
    assert build_eval_transform(PRE).min_decode_size == find(PRE, {"name": "random_rotation"}) == 220
    assert find(PRE, crop) == 392  # 96 times the root of 4/3 / 0.08
    assert find(PRE, {**crop, "scale": [0.5, 1.0], "ratio": [0.125, 2.0]}) == 384  # 96 times the root of 8 / 0.5
    assert find(PRE, {**crop, "scale": [0.9, 1.0]}) == 192
    # nearest selects single pixels of the file
    assert build_eval_transform(SHARP).min_decode_size is None
    assert find(SHARP, crop) is None


def test_min_decode_size_covers_smallest_crop(photos: tuple[Image.Image, ...]) -> None:
    transform = build_train_transform(PRE, "standard")
    assert transform.min_decode_size is not None
    reduced = photos[0].resize((transform.min_decode_size, transform.min_decode_size * 2))
    sides = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2000):
            crop = v2.RandomResizedCrop(96).make_params([reduced])
            sides += [crop["height"], crop["width"]]
    assert min(sides) >= 96


SMALL = Preprocessing(48, 56, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
HORIZONTAL = schema.RandomHorizontalFlip(name="random_horizontal_flip")
VERTICAL = schema.RandomVerticalFlip(name="random_vertical_flip", p=0.3)
ERASE = schema.RandomErasing(name="random_erasing", p=0.6)
ROTATE = schema.RandomRotation(name="random_rotation")
BATCH_TRANSFORMS: dict[str, tuple[schema.Transform, ...]] = {
    "flips": (HORIZONTAL, VERTICAL),
    "flips-and-erase": (HORIZONTAL, ERASE, VERTICAL, ERASE),
    "rotation-between": (ERASE, HORIZONTAL, ROTATE, VERTICAL, ERASE),
    "rotation-last": (HORIZONTAL, ROTATE),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: tuple[Image.Image, Image.Image]) -> Path:
    root = tmp_path_factory.mktemp("crops")
    for number in range(12):
        photos[number % 2].crop((40 * number, 9 * number, 40 * number + 90, 9 * number + 70)).save(
            root / f"{number}.png"
        )
    return root


@pytest.mark.parametrize("transforms", BATCH_TRANSFORMS.values(), ids=BATCH_TRANSFORMS.keys())
@pytest.mark.parametrize("num_workers", [0, 1])
def test_deferred_transforms_give_same_pixels(
    folder: Path, transforms: tuple[schema.Transform, ...], num_workers: int
) -> None:
    transform = build_train_transform(SMALL, transforms)
    samples = [Sample(f"{number}.png", 0) for number in range(12)]
    config = LoaderConfig(folder, "error", num_workers)
    with (
        ImageLoader(samples, transform, 5, config) as immediate,
        ImageLoader(samples, transform.defer_to_device(), 5, config) as deferring,
    ):
        is_changed = False
        for epoch in range(3):
            for expected, deferred in zip(
                immediate.batches(rng_key=(0, epoch)), deferring.batches(rng_key=(0, epoch)), strict=True
            ):
                assert expected.transform_params == ()
                assert len(deferred.transform_params) == len(transform.batch_transforms)
                before = deferred.inputs[0].clone()
                applied = apply_batch_transforms(
                    deferred.inputs[0], [params.to(torch.device("cpu")) for params in deferred.transform_params]
                )
                assert torch.equal(applied, expected.images)
                assert torch.equal(deferred.inputs[0], before)
                is_changed = is_changed or not torch.equal(applied, before)
        assert is_changed == bool(transform.batch_transforms)


def test_only_trailing_transforms_are_deferred() -> None:
    kinds = {
        name: [each.kind for each in build_train_transform(SMALL, transforms).batch_transforms]
        for name, transforms in BATCH_TRANSFORMS.items()
    }
    assert kinds == {
        "flips": ["horizontal_flip", "vertical_flip"],
        "flips-and-erase": ["horizontal_flip", "erase", "vertical_flip", "erase"],
        "rotation-between": ["vertical_flip", "erase"],
        "rotation-last": [],
    }


def test_batch_transforms_match_torchvision(photo: Image.Image) -> None:
    torchvision_transforms: dict[BatchTransformConfig, v2.Transform] = {
        HORIZONTAL: v2.RandomHorizontalFlip(0.5),
        VERTICAL: v2.RandomVerticalFlip(0.3),
        ERASE: v2.Compose([v2.PILToTensor(), v2.RandomErasing(0.6), v2.ToPILImage()]),
    }
    before = photo.tobytes()
    with torch.random.fork_rng(devices=[]):
        for config, expected_transform in torchvision_transforms.items():
            transform = build_batch_transform(config)
            for seed in range(12):
                torch.manual_seed(seed)
                expected, state = expected_transform(photo), torch.get_rng_state()
                torch.manual_seed(seed)
                assert transform.apply(photo, transform.make_params(photo.size)).tobytes() == expected.tobytes()
                assert torch.equal(torch.get_rng_state(), state)
    assert photo.tobytes() == before


def test_empty_batch_has_no_transform_params(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    transform = build_train_transform(SMALL, BATCH_TRANSFORMS["flips"]).defer_to_device()
    batches: list[Batch] = list(
        ImageLoader([Sample("a.png", 0)], transform, 4, LoaderConfig(tmp_path, "skip", 0)).batches(rng_key=(0,))
    )
    assert [(len(batch.paths), batch.transform_params) for batch in batches] == [(0, ())]
    assert apply_batch_transforms(batches[0].inputs[0], batches[0].transform_params).shape == (0, 3, 48, 48)


def test_deferred_transform_called_on_image_applies_all(photo: Image.Image) -> None:
    transform = build_train_transform(SMALL, BATCH_TRANSFORMS["flips-and-erase"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = transform(photo)
        torch.manual_seed(0)
        assert torch.equal(transform.defer_to_device()(photo), expected)
