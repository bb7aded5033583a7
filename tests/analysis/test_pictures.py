"""Pictures show the very pixels that the network sees, and the values that its layers give."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ftcli.analysis.inspection.activations import arrange, check_layers, choose_layers, find_grid, look_at
from ftcli.analysis.inspection.augmentation import choose_samples, draw_augmentation, list_epochs
from ftcli.analysis.inspection.features import colour_filters, draw_features, find_varied, stretch
from ftcli.analysis.pictures import LINE, MARGIN, Pixels, Sheet, check_target, fit_pixels
from ftcli.analysis.subjects import Subject
from ftcli.data.batches import Batch
from ftcli.data.images import read_rgb
from ftcli.data.loading import Loader
from ftcli.data.sources import Sample
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError, RecipeError
from ftcli.inference.classifier import load_classifier
from ftcli.models.anatomy import examine, find_head
from ftcli.models.zoo import build_network
from ftcli.recipe.loading import read_recipe
from ftcli.results import Preprocessing, Silent
from tests.conftest import Ftcli


class Listener(Silent):
    """A Reporter that remembers warnings."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def read(png: Path | bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png).convert("RGB"))


def test_a_sheet_holds_the_pixels_to_the_bit(photographs: dict[str, Image.Image]) -> None:
    photo = np.asarray(photographs["china"].crop((0, 0, 211, 97)))
    sheet = Sheet(300, 151)
    sheet.paste(photo, 7, 31)
    sheet.write("狗 $x$ 🐶", 7, 5, 200)
    picture = read(sheet.render())
    assert picture.shape == (151, 300, 3)
    assert np.array_equal(picture[31:128, 7:218], photo)
    assert picture[5:20].min() < 128
    assert picture[130:].min() == 255
    assert sheet.render() == sheet.render()


def test_small_pixels_become_blocks_and_large_images_are_reduced() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(fit_pixels(pixels, 5, 99)[::3, ::3], pixels)
    assert fit_pixels(pixels, 5, 99).shape == (6, 6, 3)
    assert np.array_equal(fit_pixels(pixels, 1, 2), pixels)
    assert fit_pixels(np.zeros((500, 500, 3), np.uint8), 96, 256).shape == (256, 256, 3)


def test_only_a_png_in_a_folder_that_is_there_is_drawn(tmp_path: Path) -> None:
    check_target(tmp_path / "out.PNG", "--plot-augment")
    with pytest.raises(RecipeError) as error:
        check_target(tmp_path / "out.jpg", "--plot-augment")
    assert str(error.value) == (
        f"--plot-augment: {tmp_path}/out.jpg does not end in .png, the one format that is drawn; give such a name"
    )
    with pytest.raises(RecipeError) as error:
        check_target(tmp_path / "no/out.png", "--plot-activations")
    assert (
        str(error.value) == f"--plot-activations: the folder {tmp_path}/no is not there; make it, or give another place"
    )


def test_images_are_spread_over_classes() -> None:
    def choose(classes: int, images: int) -> tuple[Sample, ...]:
        return choose_samples([Sample(f"{label}/{n}", label) for label in range(classes) for n in range(images)])

    assert [sample.path for sample in choose(2, 8)] == ["0/1", "0/3", "0/5", "0/7", "1/1", "1/3", "1/5", "1/7"]
    assert Counter(sample.label for sample in choose(3, 9)) == {0: 3, 1: 3, 2: 2}
    assert [sample.label for sample in choose(10, 5)] == list(range(10))
    assert len({sample.label for sample in choose(1000, 2)}) == 12
    assert len(choose(2, 3)) == 6


def test_the_views_are_those_that_training_trains_on(
    workplace: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Pixels]] = {}
    take = Loader.batches

    def spy(self: Loader, *given: Any, **more: Any) -> Iterator[Batch]:
        for batch in take(self, *given, **more):
            if more.get("draw") is not None:
                for path, image in zip(batch.paths, batch.images, strict=True):
                    seen.setdefault(path, []).append(image.permute(1, 2, 0).numpy())
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Loader, "batches", spy)
        assert ftcli("train", "r.yaml", "--set", "stages.head.cache=off").code == 0
    draw_augmentation(read_recipe(Path("r.yaml")), Path("out.png"), Silent())
    picture = read(Path("out.png"))
    recipe = read_recipe(Path("r.yaml")).recipe
    assert list_epochs(recipe) == (("head", 1), ("head", 2), ("all", 1), ("all", 2))
    column = 32 * 3 + (120 - 96) + 8
    first = MARGIN + 2 * LINE + 16 + LINE
    drawn = 0
    for row in range(8):
        cells = [
            picture[first + row * 128 : first + row * 128 + 96 : 3, MARGIN + n * column : MARGIN + n * column + 96 : 3]
            for n in range(5)
        ]
        (path,) = [path for path, views in seen.items() if all(map(np.array_equal, views, cells[1:]))]
        drawn += path.split("/")[1] == ("china" if row < 4 else "flower")
    assert drawn == 8


def test_a_picture_has_the_same_bytes_twice_and_is_there_whole_or_not(workplace: Path) -> None:
    document = read_recipe(Path("r.yaml"))
    for name in ("one.png", "two.png"):
        draw_augmentation(document, Path(name), Silent())
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert sorted(path.name for path in workplace.iterdir()) == ["one.png", "r.yaml", "two.png"]


def test_broken_images_are_left_out_and_told_or_stop_it(workplace: Path, photo_folder: Path) -> None:
    for label in ("a", "b"):
        for number in range(4):
            target = Path(f"few/train/{label}/{number}.jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((photo_folder / f"train/china/{number}.jpg").read_bytes())
    stop = read_recipe(Path("r.yaml"), ["data.root=few"])
    skip = read_recipe(Path("r.yaml"), ["data.root=few", "data.on_corrupt_image=skip"])
    draw_augmentation(stop, Path("out.png"), Silent())
    whole = read(Path("out.png"))
    Path("out.png").unlink()
    for path in Path("few/train/a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        draw_augmentation(stop, Path("out.png"), Silent())
    assert "is empty (0 bytes)" in str(error.value)
    assert not Path("out.png").exists()
    listener = Listener()
    draw_augmentation(skip, Path("out.png"), listener)
    assert all(told.startswith("left out: few/train/a/") for told in listener.warned)
    rows = (whole.shape[0] - read(Path("out.png")).shape[0]) // 128
    assert rows == len(listener.warned) > 0
    for path in Path("few/train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        draw_augmentation(skip, Path("out.png"), Silent())
    assert str(error.value).startswith("--plot-augment: not one of 4 images can be read; the first: few/train/a/")


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((64, 56, 56), (56, 56)),
        ((7, 7, 768), (7, 7)),
        ((8, 8, 8), (8, 8)),
        ((197, 768), (14, 14)),
        ((196, 768), (14, 14)),
        ((201, 768), (14, 14)),
        ((512, 1, 1), None),
        ((1, 1, 768), None),
        ((768,), None),
        ((2, 768), None),
        ((64, 49, 32), None),
        (None, None),
    ],
)
def test_what_counts_as_an_image(shape: tuple[int, ...] | None, grid: tuple[int, int] | None) -> None:
    assert find_grid(shape, 5) == grid


def test_tokens_and_channels_find_their_places() -> None:
    maps = torch.arange(2 * 3 * 3.0).reshape(2, 3, 3)
    assert torch.equal(arrange(maps[None], 1), maps)
    assert torch.equal(arrange(maps.permute(1, 2, 0)[None], 1), maps)
    tokens = torch.cat([torch.full((1, 2), 99.0), maps.flatten(1).T])
    assert torch.equal(arrange(tokens[None], 1), maps)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet18", 64, ("conv1", "layer1", "layer2", "layer3", "layer4")),
        (
            "vit_b_16",
            64,
            ("conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in (2, 5, 8, 11))),
        ),
        ("swin_t", 64, ("features.0", "features.2", "features.4", "features.5", "features.7")),
        ("squeezenet1_1", 64, ("features.0", "features.4", "features.7", "features.10", "features.12")),
        (
            "densenet121",
            64,
            (
                "features.conv0",
                "features.transition1",
                "features.transition2",
                "features.denseblock3",
                "features.denseblock4",
            ),
        ),
        ("timm/efficientnet_lite0", 96, ("conv_stem", "blocks.1", "blocks.3", "blocks.5", "conv_head")),
    ],
)
def test_layers_are_chosen_from_the_first_to_the_last(name: str, size: int, layers: tuple[str, ...]) -> None:
    model = build_network(name, True, size)
    anatomy = examine(model, size)
    assert choose_layers(model, anatomy, find_head(model, anatomy).path, 1) == layers


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("timm/vit_tiny_patch16_224", 64), ("swin_t", 64), ("squeezenet1_1", 64), ("densenet121", 64)],
)
def test_the_maps_are_what_the_layers_give(name: str, size: int, photographs: dict[str, Image.Image]) -> None:
    torch.manual_seed(0)
    model = build_network(name, False, size)
    pre = Preprocessing(size, size, "squash", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    head = find_head(model, examine(model, size)).path
    look = look_at(Subject(name, model, pre, head, None, "none"), photographs["china"], ())
    assert look.pixels.shape == (3, size, size)
    assert look.filters is not None
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert torch.equal(look.filters, first.weight)
    expected = (look.pixels[None].float() / 255 - 0.5) / 0.2
    conv = torch.nn.functional.conv2d(expected, first.weight, first.bias, first.stride, first.padding)
    assert look.views[0].maps.shape[1] in (conv.shape[2], conv.shape[2] // 2)
    if look.views[0].name == look.filter_layer:
        assert torch.allclose(look.views[0].maps, conv[0], atol=1e-4)
    for view in look.views:
        assert view.maps.ndim == 3
        assert view.maps.shape[1] == view.maps.shape[2] > 1
        assert view.maps.numel() <= np.prod(view.shape)
    with torch.inference_mode():
        assert torch.allclose(look.probabilities.float(), model(expected).softmax(1)[0], atol=1e-5)


def test_a_layer_that_cannot_be_drawn_is_told() -> None:
    model = build_network("resnet18", True, 64)
    with pytest.raises(RecipeError) as error:
        check_layers(examine(model, 64), ["layer2", "layr3", "avgpool"], 1)
    assert error.value.faults == (
        "--layer layr3: no image passes through a module of this name; did you mean 'layer3' or 'layer3.1' or "
        "'layer3.0'?",
        "--layer avgpool: its output is of shape [512, 1, 1], which is no image; choose a layer that gives one",
    )


def test_values_become_colours() -> None:
    maps = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 8.0], [0.0, 0.0]], [[2.0, 4.0], [2.0, 2.0]]])
    assert find_varied(maps) == (1, 2, 0)
    assert stretch(maps[2]).tolist() == [[0, 1], [0, 0]]
    assert stretch(maps[0]).tolist() == [[0, 0], [0, 0]]
    (kernel,) = colour_filters(torch.tensor([[[[0.5]], [[-0.5]], [[0.0]]]]))
    assert kernel.tolist() == [[[255, 0, 128]]]
    (grey,) = colour_filters(torch.tensor([[[[1.0, -1.0]], [[3.0, -3.0]]]]))
    assert grey.tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_a_checkpoint_tells_the_class_that_it_gives(
    finished: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo_folder / "test/flower/20.jpg"
    written: list[str] = []
    write = Sheet.write

    def spy(self: Sheet, text: str, *place: Any, **more: Any) -> Any:
        written.append(text)
        return write(self, text, *place, **more)

    monkeypatch.setattr(Sheet, "write", spy)
    draw_features("runs/photos/best_loss.pt", image, Path("out.png"), ["stage2"], Silent())
    classifier, checkpoint, *_ = load_classifier(finished / "runs/photos/best_loss.pt", torch.device("cpu"))
    pixels = build_eval_transform(checkpoint.preprocessing)(read_rgb(image))
    with torch.inference_mode():
        sure, best = classifier.compute_logits(pixels[None]).softmax(1)[0].max(0)
    assert written[1] == f"{classifier.classes[int(best)]} ({float(sure):.1%}): {image}"
    assert written[4].startswith("stage2: 48 x 4 x 4; mean over 48 channels, on the input and alone; channels ")
    picture = read(Path("out.png"))
    expected = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((248, 248), Image.Resampling.BICUBIC)
    top = MARGIN + 3 * LINE + 8 + LINE
    assert np.array_equal(picture[top : top + 248, MARGIN : MARGIN + 248], np.asarray(expected))


def test_an_image_that_cannot_be_read_is_told(workplace: Path) -> None:
    Path("broken.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        draw_features(read_recipe(Path("r.yaml")), Path("broken.jpg"), Path("out.png"), (), Silent())
    assert str(error.value) == "--plot-activations: broken.jpg is empty (0 bytes); give another image"
    assert not Path("out.png").exists()
