"""What features are taken of: a model's name and a checkpoint come to a recipe and its images, as in training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.analysis.drafting.draft import Brief, draft_recipe
from ftcli.analysis.extraction import Wish, extract
from ftcli.analysis.extraction.sources import Source, Target, find_images, open_source
from ftcli.errors import DataError, RecipeError
from ftcli.recipe.loading import read_recipe, revive_recipe
from ftcli.recipe.parsing import parse_yaml
from ftcli.recipe.schema import Backbone
from ftcli.results import Silent
from tests.conftest import read_npz


def test_a_name_gets_the_stages_that_init_would_write(photo_folder: Path) -> None:
    target = Target(source="resnet18", data=photo_folder, image_size=64)
    source, images = find_images(open_source(target, Silent()), target, Silent())
    drafted = draft_recipe(Brief(data=photo_folder, backbone="resnet18", device="cpu"), Silent())
    recipe, other = source.document.recipe, revive_recipe(parse_yaml(drafted.recipe, "init").data, "init").recipe
    assert recipe.stages == other.stages
    assert (recipe.name, recipe.head.hidden, recipe.data.image_size) == ("resnet18", (), 64)
    assert (recipe.backbone, recipe.data.roots) == (Backbone(name="resnet18"), (str(photo_folder),))
    assert images.classes == ("china", "flower")
    with pytest.raises(RecipeError) as caught:
        open_source(replace(target, source="alexnet", image_size=1), Silent())
    assert str(caught.value).startswith(
        "--image-size 1: data.image_size: the network takes no images of 1 x 1 pixels ("
    )


def test_images_stay_in_the_split_that_they_had_in_training(finished: Path, photo_folder: Path) -> None:
    held = json.loads((finished / "runs/photos/run.json").read_text())["data"]["splits"]
    rows = [f"{photo_folder / path},{Path(path).parent.name}" for paths in held.values() for path in paths]
    shutil.copy(photo_folder / "train/china/0.jpg", finished / "new.jpg")
    (finished / "all.csv").write_text("\n".join(["path,label", *rows, "new.jpg,china"]))
    target = Target(source="best_loss.pt", data=Path("all.csv"))
    source, images = find_images(open_source(target, Silent()), target, Silent())
    found = {sample.path: split for split, samples in images.splits.items() for sample in samples}
    del found["new.jpg"]
    assert found == {str(photo_folder / path): split for split, paths in held.items() for path in paths}
    assert (source.subject.sha256, source.subject.epoch > 0) == (source.subject.sha256, True)
    other = Source(source.document, replace(source.subject, classes=("flower", "china")), source.path)
    _, turned = find_images(other, target, Silent())
    assert {"flower" in sample.path for sample in turned.splits["train"] if sample.label == 0} == {True}


def test_images_are_checked_before_weights_are_loaded(workplace: Path, photo_folder: Path) -> None:
    rows = [
        f"{photo_folder}/train/{name}/{number}.jpg,{name},{split},{name} {split}"
        for name in ("china", "flower")
        for number, split in enumerate(("train", "train", "val", "test"))
    ]
    Path("two.csv").write_text("\n".join(["path,label,split,group", *rows]))
    target = Target(source="resnet18", weights="missing.pth", data=Path("two.csv"), image_size=32)
    with pytest.raises(DataError) as caught:
        extract(Wish(target=target, probe="svm"), Silent())
    assert str(caught.value).startswith(
        "--probe svm: cross-validation needs at least 2 groups of each class in train, and 2 of 2 classes have "
    )
    document = read_recipe(Path("r.yaml"))
    with pytest.raises(RecipeError) as refused:
        extract(Wish(target=Target(source="r.yaml", document=document), probe="svm", device="gpu"), Silent())
    assert str(refused.value) == "--device: 'gpu' is no device; give auto, cpu, cuda, cuda:1 or mps"


def test_broken_images_that_leave_a_class_too_few_are_told_with_it(workplace: Path, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, workplace / "photos")
    for image in (workplace / "photos/train/china").iterdir():
        image.write_bytes(b"no image")
    text = Path("r.yaml").read_text().replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip")
    Path("r.yaml").write_text(text)
    target = Target(source="r.yaml", document=read_recipe(Path("r.yaml")), data=Path("photos"))
    _, images = find_images(open_source(target, Silent()), target, Silent())
    broken = [sample.path for samples in images.splits.values() for sample in samples if "train/china" in sample.path]
    flowers = sum("flower" in sample.path for sample in images.splits["train"])
    with pytest.raises(DataError) as caught:
        extract(Wish(target=target, probe="svm"), Silent())
    assert caught.value.faults == (
        f"--probe svm: all {flowers} images of train are of the class flower, and a probe tells at least two apart; "
        "add a folder with images of another class to train",
        f"--probe svm: broken images left out: {len(broken)}; the first: photos/{broken[0]}: is no image that can be "
        "read; replace it, remove it, or set data.on_corrupt_image: skip",
    )


def test_what_features_are_taken_from_is_not_written_over(finished: Path, photo_folder: Path) -> None:
    run = Path("runs/photos")
    shutil.copy(run / "best_loss.pt", "own.pt")
    Path("link").symlink_to(finished, target_is_directory=True)

    def refuse(source: str, place: str) -> tuple[str, ...]:
        target = Target(source=source)
        if target.model is not None:
            target = replace(target, weights=place, data=photo_folder, image_size=32)
        before = Path(place).read_bytes()
        with pytest.raises(RecipeError) as caught:
            extract(Wish(target=target, probe="svm", head=Path(place)), Silent())
        assert Path(place).read_bytes() == before
        return caught.value.faults

    assert refuse("own.pt", "link/own.pt") == (
        "--save-head: link/own.pt is the checkpoint itself, which stays as it is; give another name",
    )
    assert refuse("shufflenet_v2_x0_5", "own.pt") == (
        "--save-head: own.pt holds the weights, and stays as it is; give another name",
    )
    assert refuse("own.pt", f"{run}/last.pt") == (
        f"--save-head: {run}/last.pt is a checkpoint that its run goes on from; give another name",
    )


def test_a_size_that_the_recipe_cannot_cut_is_told_at_its_option(workplace: Path) -> None:
    text = Path("r.yaml").read_text().replace("image_size: 32", "image_size: 32\n  resize_size: 40")
    Path("r.yaml").write_text(text)
    target = Target(source="r.yaml", document=read_recipe(Path("r.yaml")), image_size=64)
    with pytest.raises(RecipeError) as caught:
        open_source(target, Silent())
    assert str(caught.value) == (
        "--image-size 64: r.yaml resizes images to 40 pixels before it cuts them (data.resize_size); give at most 40, "
        "or a larger resize_size in the recipe"
    )
    assert open_source(replace(target, image_size=40), Silent()).subject.preprocessing.image_size == 40


def test_a_split_of_broken_images_alone_is_left_out_whole(workplace: Path, photo_folder: Path) -> None:
    shutil.copytree(photo_folder, workplace / "photos")
    for image in (workplace / "photos/test").glob("*/*.jpg"):
        image.write_bytes(b"no image")
    Path("r.yaml").write_text(
        Path("r.yaml").read_text().replace("num_workers: 0", "num_workers: 0\n  on_corrupt_image: skip")
    )
    target = Target(source="r.yaml", document=read_recipe(Path("r.yaml")), data=Path("photos"))
    for cache in (True, False):
        extraction = extract(Wish(target=target, out=Path("all.npz"), cache=cache), Silent())
        assert len(extraction.skipped) == 12
        assert set(read_npz("all.npz")["splits"]) == {"train", "val"}
