"""Drafted recipes fit the dataset, give reasons, and are valid for any names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ftcli.advice.dataset_stats import DatasetStats, compute_dataset_stats
from ftcli.advice.init import InitArgs, ModelChoice, build_recipe_text, draft_recipe
from ftcli.errors import DataError, RecipeError
from ftcli.planning import plan_recipe
from ftcli.recipe.loading import read_recipe, recipe_from_dict
from ftcli.recipe.parsing import parse_yaml
from ftcli.recipe.schema import Recipe, Stage
from ftcli.results import WeightsEntry
from tests.conftest import LibraryLog

WEIGHTS = WeightsEntry("IMAGENET1K_V1", 69.758, 11_689_512, "https://x", True)
MODEL_CHOICE = ModelChoice("resnet18", WEIGHTS, 224, 224, has_batch_norm=True, has_gpu=False)
STATS = DatasetStats(
    root="data/x",
    existing_splits=("train", "val", "test"),
    val_fraction=None,
    test_fraction=None,
    classes=("a", "b"),
    splits={"train": {"a": 600, "b": 400}, "val": {"a": 60, "b": 40}, "test": {"a": 90, "b": 10}},
    shapes=((400, 300, False),) * 500,
    corrupt=(),
)

Fill = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: dict[str, Image.Image]) -> Fill:
    """Return a function that creates the folder data with the given number of 60 x 48 images per subfolder."""
    monkeypatch.chdir(tmp_path)
    photo = photographs["china"]

    def make(counts: Mapping[str, int]) -> Path:
        for folder, count in counts.items():
            (Path("data") / folder).mkdir(parents=True)
            for number in range(count):
                photo.crop((number, 0, number + 60, 48)).save(Path("data") / folder / f"{number}.png")
        return Path("data")

    return make


def parse_recipe(text: str) -> Recipe:
    return recipe_from_dict(parse_yaml(text, "draft").data, "draft").recipe


def build_recipe(stats: DatasetStats = STATS, model_choice: ModelChoice = MODEL_CHOICE) -> Recipe:
    return parse_recipe(build_recipe_text(stats, model_choice, "x", "ftcli train x.yaml"))


def stats_with_shapes(*shapes: tuple[int, int]) -> DatasetStats:
    return replace(STATS, shapes=tuple((width, height, False) for width, height in shapes))


def test_build_recipe_text_exact() -> None:
    stats = replace(STATS, splits={**STATS.splits, "train": {"a": 900, "b": 100}})
    assert build_recipe_text(stats, MODEL_CHOICE, "x", "ftcli train x.yaml") == TEXT


TEXT = """\
# ftcli train x.yaml
#
# 1,200 images of 2 classes: 'a', 'b'. The median size of 500 is
# 400 x 300 pixels, in color. Always predicting 'a' has an accuracy of 90.0% on train.
# 'b' has 100 of these images and 'a' 900: compare the metrics per class, not the accuracy alone.
name: x
data:
  root: data/x                  # train 1,000, val 100, test 100
  image_size: 224               # that of the pretrained weights
  resize: crop                  # center crop; use squash or pad if the border matters
  augment: standard             # crops of 8 to 100% and horizontal flips; use light if small details matter
  batch_size: 32                # 32 steps per epoch; decrease if memory runs out
backbone:
  name: resnet18                # 69.8% on ImageNet, 11.7 M parameters; `ftcli inspect` lists others
  weights: default              # downloaded once, then read from the cache
stages:
  - name: head
    freeze: backbone            # first the new head alone: its weights are random
    epochs: 4                   # more if the validation loss still falls at the end
    optimizer: {name: adamw, lr: 3.0e-3, weight_decay: 1.0e-2}
    schedule: one_cycle         # the learning rate rises and then falls to nearly 0
  - name: all
    freeze: none                # then all layers, with a lower learning rate
    batch_norm: frozen          # the running statistics of so few images are worse than those of the weights
    epochs: 8                   # more if the validation loss still falls at the end
    optimizer: {name: adamw, lr: 3.0e-4, weight_decay: 1.0e-2}
    schedule: one_cycle         # the learning rate rises and then falls to nearly 0
"""


@pytest.mark.parametrize(
    ("num_train", "steps"),
    [(7, "1 step"), (33, "4 steps"), (34, "5 steps"), (64, "8 steps")],
)
def test_build_recipe_text_steps_match_training(num_train: int, steps: str) -> None:
    stats = replace(STATS, splits={"train": {"a": num_train - 1, "b": 1}, "val": {"a": 1, "b": 1}})
    assert f"  batch_size: 8                 # {steps} per epoch; " in build_recipe_text(
        stats, MODEL_CHOICE, "x", "ftcli train x.yaml"
    )


def test_build_recipe_text_chooses_resize_and_augment() -> None:
    assert build_recipe(stats_with_shapes(*[(300, 300)] * 9, (300, 200))).data.resize == "squash"
    assert build_recipe(stats_with_shapes((300, 300), (400, 300))).data.resize == "crop"
    assert build_recipe(stats_with_shapes((300, 300), (900, 300))).data.resize == "pad"
    assert build_recipe(stats_with_shapes((300, 300))).data.augment == "light"
    assert build_recipe(stats_with_shapes((400, 300))).data.augment == "standard"
    assert build_recipe(stats_with_shapes((400, 300)), replace(MODEL_CHOICE, image_size=64)).data.augment == "light"


def test_build_recipe_text_depends_on_dataset_size() -> None:
    def settings_for(train: int, **changes: object) -> tuple[int, list[int], str]:
        stats = replace(STATS, splits={"train": {"a": train // 2, "b": train // 2}, "val": {"a": 1, "b": 1}})
        recipe = build_recipe(stats, replace(MODEL_CHOICE, **changes))  # type: ignore[arg-type]
        stages = [stage for stage in recipe.stages if isinstance(stage, Stage)]
        return recipe.data.batch_size, [stage.epochs for stage in stages], stages[-1].batch_norm

    assert settings_for(100) == (8, [10, 15], "frozen")
    assert settings_for(400) == (16, [10, 15], "frozen")
    assert settings_for(1000) == (32, [4, 8], "frozen")
    assert settings_for(20_000) == (32, [2, 5], "train")
    assert settings_for(20_000, has_gpu=True) == (64, [2, 5], "train")
    assert settings_for(1000, has_batch_norm=False) == (32, [4, 8], "train")
    (only,) = build_recipe(STATS, replace(MODEL_CHOICE, weights=None)).stages
    assert isinstance(only, Stage)
    assert (only.freeze, only.batch_norm, only.epochs) == ("none", "train", 30)


@pytest.mark.parametrize(
    "name",
    [
        "a: b # c",
        'it\'s "q" \\ $x %',
        "قطة/狗 (柴犬)/🐶 puppy",
        "1e3",
        "1.5",
        "null",
        "True",
        "~",
        "-",
        "- x",
        "{a: b}",
        "[x]",
        "*x",
        "&x",
        "!x",
        "@`",
        " x ",
        "new\nline\ttab\r\x1b\x7f\x85\u2028",
        "x" * 300,
        "=",
        "0x10",
        "a" + "\u00a0" + "b\ufeff",
    ],
)
def test_build_recipe_text_keeps_any_name(name: str) -> None:
    stats = replace(
        STATS,
        root=name,
        classes=(name, "b"),
        splits={"train": {name: 600, "b": 100}, "val": {name: 6, "b": 1}, "test": {name: 6, "b": 1}},
    )
    text = build_recipe_text(stats, replace(MODEL_CHOICE, name=name), "x", "ftcli train x.yaml")
    recipe = parse_recipe(text)
    assert (recipe.data.root, recipe.backbone.name) == (name, name)


def test_compute_dataset_stats_rejects_undecodable_root(fill: Fill) -> None:
    counts = {"\udcff": 9, "b": 1}
    stats = replace(STATS, classes=tuple(counts), splits={"train": counts, "val": counts})
    text = build_recipe_text(stats, MODEL_CHOICE, "x", "ftcli train x.yaml")
    assert "2 classes: '\\udcff', 'b'." in text
    parse_recipe(text)
    root = fill({"a": 10, "b": 10}).rename(os.fsdecode(b"\xff"))
    with pytest.raises(DataError) as error:
        compute_dataset_stats(root, "init")
    assert str(error.value) == (
        "init: '\\udcff' is not valid in a recipe; rename it to at most 1,000 characters of UTF-8"
    )


def test_compute_dataset_stats_keeps_existing_splits(fill: Fill) -> None:
    root = fill({f"{split}/{name}": 10 for split in ("train", "val", "test") for name in "ab"})
    stats = compute_dataset_stats(root, "init")
    assert (stats.val_fraction, stats.test_fraction, stats.num_images) == (None, None, 60)
    text = build_recipe_text(stats, MODEL_CHOICE, "x", "ftcli train x.yaml")
    assert "  root: data                    # train 20, val 20, test 20\n" in text
    assert "val" not in [line.split(":")[0].strip() for line in text.splitlines()]


def test_compute_dataset_stats_splits_off_missing_splits(fill: Fill) -> None:
    stats = compute_dataset_stats(fill({"train/a": 10, "train/b": 10}), "init")
    assert (stats.val_fraction, stats.test_fraction) == (0.2, None)
    assert "without test images accuracy on new ones is unknown" in build_recipe_text(
        stats, MODEL_CHOICE, "x", "ftcli train x.yaml"
    )
    recipe = build_recipe(stats)
    assert (recipe.data.val, recipe.data.test) == (0.2, 0.2)


def test_draft_recipe_from_folder_and_manifest(fill: Fill) -> None:
    root = fill({"a": 30, "b": 10})
    stats = compute_dataset_stats(root, "init")
    assert (stats.val_fraction, stats.test_fraction, stats.existing_splits) == (0.2, 0.2, ())
    rows = "".join(f"data/{name}/{number}.png,{name}\n" for name, n in (("a", 30), ("b", 10)) for number in range(n))
    Path("all.csv").write_text("path,label\n" + rows)
    result = draft_recipe(InitArgs(data=Path("all.csv"), device="cpu"))
    assert (result.images, result.classes) == (40, ("a", "b"))
    recipe = parse_recipe(result.recipe)
    assert (recipe.name, recipe.data.root, recipe.data.val, recipe.data.test) == ("all", "all.csv", 0.2, 0.2)


@pytest.mark.slow
def test_draft_recipe_limits_image_size(fill: Fill) -> None:
    root = fill({"a": 10, "b": 10})

    def draft(backbone: str | None = None) -> Recipe:
        result = draft_recipe(InitArgs(data=root, backbone=backbone, device="cpu"))
        assert (result.width, result.height, result.grey, result.looked_at) == (60, 48, 0, 20)
        return parse_recipe(result.recipe)

    assert draft().data.image_size == 32
    transformer = draft("vit_b_16")
    assert transformer.data.image_size == 224  # fixed image size
    assert transformer.stages[-1].model_dump()["batch_norm"] == "train"
    assert draft("inception_v3").data.image_size == 299  # minimum size


def test_draft_recipe_pads_elongated_images(fill: Fill) -> None:
    root = fill({"a": 4, "b": 4})
    for path in root.rglob("*.png"):
        Image.open(path).resize((200, 6)).save(path)
    recipe = parse_recipe(draft_recipe(InitArgs(data=root, device="cpu")).recipe)
    assert (recipe.data.resize, recipe.data.image_size) == ("pad", 192)
    text = build_recipe_text(compute_dataset_stats(root, "init"), MODEL_CHOICE, "x", "ftcli train x.yaml")
    assert "# the smallest for this backbone; the longer side of the images is 200\n" in text


def test_draft_recipe_without_pretrained_weights(fill: Fill) -> None:
    result = draft_recipe(InitArgs(data=fill({"a": 10, "b": 10}), backbone="timm/darknet17", device="cpu"))
    recipe = parse_recipe(result.recipe)
    assert recipe.backbone.weights == "none"
    assert "# none are published, so training starts from random weights; better give a file\n" in result.recipe
    assert [(stage.name, stage.freeze) for stage in recipe.stages] == [("all", "none")]


def test_draft_recipe_reports_corrupt_images(fill: Fill, log: LibraryLog) -> None:
    root = fill({"a": 10, "b": 10})
    (root / "a/3.png").write_bytes(b"")
    (root / "b/4.png").write_bytes(b"nothing")

    result = draft_recipe(InitArgs(data=root, device="cpu"))
    assert result.broken == tuple(sorted(log.warnings))
    assert result.broken[0] == (
        "data/a/3.png: is empty (0 bytes); replace it, remove it, or set data.on_corrupt_image: skip"
    )
    assert "  on_corrupt_image: skip        # 2 of 20 checked images are corrupt; " in result.recipe
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        draft_recipe(InitArgs(data=root, device="cpu"))
    assert str(error.value) == (
        "init: none of 20 images of data can be read; the first: data/a/4.png: is empty (0 bytes); replace it, "
        "remove it, or set data.on_corrupt_image: skip"
    )


def test_draft_recipe_makes_a_valid_name(fill: Fill) -> None:
    root = fill({"a": 10, "b": 10})
    names = {"Solar Cells (2)": "Solar-Cells--2", "狗": "狗", "²": "images", ".x": "x", "a\nb": "a-b"}
    names |= {"狗" * 80: "狗" * 66}
    for folder, name in names.items():
        root = root.rename(folder)
        result = draft_recipe(InitArgs(data=root, device="cpu"))
        Path("r.yaml").write_text(result.recipe)
        recipe_file = read_recipe(Path("r.yaml"))
        assert (recipe_file.recipe.name, recipe_file.recipe.data.root) == (name, folder)
        assert len(plan_recipe(recipe_file).stages) == 2
    with pytest.raises(RecipeError) as error:
        draft_recipe(InitArgs(data=root, name="a b", device="cpu"))
    assert str(error.value) == (
        "--name: name: 'a b' is not a valid name; use letters, digits, '.', '_' and '-', and begin with a "
        "letter or digit"
    )
