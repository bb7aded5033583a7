"""Tests of the sources of features and of the checks of their images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.advice.init import InitArgs, draft_recipe
from ftcli.errors import DataError, RecipeError
from ftcli.extraction.args import ExtractArgs
from ftcli.extraction.extract import extract
from ftcli.extraction.sources import ExtractionSource, SourceArgs, load_source_dataset, open_source
from ftcli.recipe.loading import read_recipe, recipe_from_dict
from ftcli.recipe.parsing import parse_yaml
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter
from tests.conftest import read_npz


def test_open_source_of_model_name_has_stages_of_init(photo_folder: Path) -> None:
    source_args = SourceArgs(source="resnet18", data=photo_folder, image_size=64)
    source, images = load_source_dataset(open_source(source_args, NullReporter()), source_args, NullReporter())
    drafted = draft_recipe(InitArgs(data=photo_folder, backbone="resnet18", device="cpu"))
    recipe, other = source.recipe_file.recipe, recipe_from_dict(parse_yaml(drafted.recipe, "init").data, "init").recipe
    assert recipe.stages == other.stages
    assert (recipe.name, recipe.head.hidden, recipe.data.image_size) == ("resnet18", (), 64)
    assert (recipe.backbone, recipe.data.roots) == (Backbone(name="resnet18"), (str(photo_folder),))
    assert images.classes == ("china", "flower")
    with pytest.raises(RecipeError) as caught:
        open_source(replace(source_args, source="alexnet", image_size=1), NullReporter())
    assert str(caught.value).startswith(
        "--image-size 1: data.image_size: the network does not support images of 1 x 1 pixels ("
    )


def test_load_source_dataset_keeps_training_splits(work_dir_with_run: Path, photo_folder: Path) -> None:
    splits = json.loads((work_dir_with_run / "runs/photos/run.json").read_text())["data"]["splits"]
    rows = [f"{photo_folder / path},{Path(path).parent.name}" for paths in splits.values() for path in paths]
    shutil.copy(photo_folder / "train/china/0.jpg", work_dir_with_run / "new.jpg")
    (work_dir_with_run / "all.csv").write_text("\n".join(["path,label", *rows, "new.jpg,china"]))
    source_args = SourceArgs(source="best_loss.pt", data=Path("all.csv"))
    source, images = load_source_dataset(open_source(source_args, NullReporter()), source_args, NullReporter())
    splits_by_path = {sample.path: split for split, samples in images.splits.items() for sample in samples}
    del splits_by_path["new.jpg"]
    assert splits_by_path == {str(photo_folder / path): split for split, paths in splits.items() for path in paths}
    assert (source.loaded.sha256, source.loaded.epoch > 0) == (source.loaded.sha256, True)
    swapped = ExtractionSource(
        source.recipe_file, replace(source.loaded, classes=("flower", "china")), source.checkpoint_path
    )
    _, relabeled = load_source_dataset(swapped, source_args, NullReporter())
    assert {"flower" in sample.path for sample in relabeled.splits["train"] if sample.label == 0} == {True}


def test_extract_checks_images_before_loading_weights(work_dir: Path, photo_folder: Path) -> None:
    rows = [
        f"{photo_folder}/train/{name}/{number}.jpg,{name},{split},{name} {split}"
        for name in ("china", "flower")
        for number, split in enumerate(("train", "train", "val", "test"))
    ]
    Path("two.csv").write_text("\n".join(["path,label,split,group", *rows]))
    source_args = SourceArgs(source="resnet18", weights="missing.pth", data=Path("two.csv"), image_size=32)
    with pytest.raises(DataError) as caught:
        extract(ExtractArgs(source_args=source_args, probe="svm"), NullReporter())
    assert str(caught.value).startswith(
        "--probe svm: cross-validation needs at least 2 groups of each class in train, and 2 of 2 classes have "
    )
    recipe_file = read_recipe(Path("r.yaml"))
    with pytest.raises(RecipeError) as refused:
        extract(
            ExtractArgs(source_args=SourceArgs(source="r.yaml", recipe_file=recipe_file), probe="svm", device="gpu"),
            NullReporter(),
        )
    assert str(refused.value) == "--device: 'gpu' is not a device; give auto, cpu, cuda, cuda:1 or mps"


def test_extract_reports_corrupt_images_with_too_small_class(work_dir: Path, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    for image in (work_dir / "photos/train/china").iterdir():
        image.write_bytes(b"no image")
    text = Path("r.yaml").read_text().replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip")
    Path("r.yaml").write_text(text)
    source_args = SourceArgs(source="r.yaml", recipe_file=read_recipe(Path("r.yaml")), data=Path("photos"))
    _, images = load_source_dataset(open_source(source_args, NullReporter()), source_args, NullReporter())
    corrupt_paths = [
        sample.path for samples in images.splits.values() for sample in samples if "train/china" in sample.path
    ]
    num_flowers = sum("flower" in sample.path for sample in images.splits["train"])
    with pytest.raises(DataError) as caught:
        extract(ExtractArgs(source_args=source_args, probe="svm"), NullReporter())
    assert caught.value.messages == (
        f"--probe svm: all {num_flowers} images of train have the class flower, and at least 2 classes are needed; add "
        "a folder with images of another class to train",
        f"--probe svm: {len(corrupt_paths)} corrupt images skipped; the first: photos/{corrupt_paths[0]}: is not a "
        "readable image; replace it, remove it, or set data.on_corrupt_image: skip",
    )


def test_extract_refuses_to_overwrite_its_source(work_dir_with_run: Path, photo_folder: Path) -> None:
    run = Path("runs/photos")
    shutil.copy(run / "best_loss.pt", "own.pt")
    Path("link").symlink_to(work_dir_with_run, target_is_directory=True)

    def check_refused(source: str, path: str) -> tuple[str, ...]:
        source_args = SourceArgs(source=source)
        if source_args.model_name is not None:
            source_args = replace(source_args, weights=path, data=photo_folder, image_size=32)
        before = Path(path).read_bytes()
        with pytest.raises(RecipeError) as caught:
            extract(ExtractArgs(source_args=source_args, probe="svm", save_head=Path(path)), NullReporter())
        assert Path(path).read_bytes() == before
        return caught.value.messages

    assert check_refused("own.pt", "link/own.pt") == (
        "--save-head: link/own.pt is the checkpoint that is read; give another name",
    )
    assert check_refused("shufflenet_v2_x0_5", "own.pt") == (
        "--save-head: own.pt is the weights file that is read; give another name",
    )
    assert check_refused("own.pt", f"{run}/last.pt") == (
        f"--save-head: {run}/last.pt is a checkpoint that its run resumes from; give another name",
    )


def test_open_source_reports_image_size_above_resize_size(work_dir: Path) -> None:
    text = Path("r.yaml").read_text().replace("image_size: 32", "image_size: 32\n  resize_size: 40")
    Path("r.yaml").write_text(text)
    source_args = SourceArgs(source="r.yaml", recipe_file=read_recipe(Path("r.yaml")), image_size=64)
    with pytest.raises(RecipeError) as caught:
        open_source(source_args, NullReporter())
    assert str(caught.value) == (
        "--image-size 64: r.yaml resizes images to 40 pixels (data.resize_size); give at most 40, or set a larger "
        "data.resize_size"
    )
    assert open_source(replace(source_args, image_size=40), NullReporter()).loaded.preprocessing.image_size == 40


def test_extract_skips_split_of_corrupt_images(work_dir: Path, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, work_dir / "photos")
    for image in (work_dir / "photos/test").glob("*/*.jpg"):
        image.write_bytes(b"no image")
    Path("r.yaml").write_text(
        Path("r.yaml").read_text().replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip")
    )
    source_args = SourceArgs(source="r.yaml", recipe_file=read_recipe(Path("r.yaml")), data=Path("photos"))
    for cache in (True, False):
        extraction = extract(ExtractArgs(source_args=source_args, out=Path("all.npz"), use_cache=cache), NullReporter())
        assert len(extraction.skipped) == 12
        assert set(read_npz("all.npz")["splits"]) == {"train", "val"}
