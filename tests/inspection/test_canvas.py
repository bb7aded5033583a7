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

from ftcli.data.batches import Batch
from ftcli.data.images import read_rgb
from ftcli.data.loader import ImageLoader
from ftcli.data.samples import Sample
from ftcli.data.transforms import build_eval_transform
from ftcli.errors import DataError, RecipeError
from ftcli.evaluation.classifier import load_classifier
from ftcli.evaluation.loaded_model import LoadedModel
from ftcli.files import check_png_path
from ftcli.inspection.activation_plot import filters_to_rgb, find_most_varied_channels, min_max_scale, plot_activations
from ftcli.inspection.activations import (
    check_layers,
    choose_layers,
    compute_activations,
    infer_grid_size,
    to_channels_first,
)
from ftcli.inspection.augmentation_plot import choose_samples, list_epochs, plot_augmentation
from ftcli.inspection.canvas import LINE_HEIGHT, MARGIN, Canvas, Pixels, resize_to_fit
from ftcli.models.factory import create_model
from ftcli.models.summary import find_head, summarize
from ftcli.recipe.loading import read_recipe
from ftcli.results import NullReporter, Preprocessing
from tests.conftest import Ftcli


class RecordingReporter(NullReporter):
    """A Reporter that remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def read_png(png: Path | bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png) if isinstance(png, bytes) else png).convert("RGB"))


def test_canvas_pixels_are_exact(photographs: dict[str, Image.Image]) -> None:
    photo = np.asarray(photographs["china"].crop((0, 0, 211, 97)))
    canvas = Canvas(300, 151)
    canvas.paste(photo, 7, 31)
    canvas.write("狗 $x$ 🐶", 7, 5, 200)
    picture = read_png(canvas.render())
    assert picture.shape == (151, 300, 3)
    assert np.array_equal(picture[31:128, 7:218], photo)
    assert picture[5:20].min() < 128
    assert picture[130:].min() == 255
    assert canvas.render() == canvas.render()


def test_resize_to_fit_repeats_or_reduces() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(resize_to_fit(pixels, 5, 99)[::3, ::3], pixels)
    assert resize_to_fit(pixels, 5, 99).shape == (6, 6, 3)
    assert np.array_equal(resize_to_fit(pixels, 1, 2), pixels)
    assert resize_to_fit(np.zeros((500, 500, 3), np.uint8), 96, 256).shape == (256, 256, 3)


def test_check_png_path_rejects(tmp_path: Path) -> None:
    check_png_path(tmp_path / "out.PNG", "--plot-augment")
    with pytest.raises(RecipeError) as error:
        check_png_path(tmp_path / "out.jpg", "--plot-augment")
    assert str(error.value) == (f"--plot-augment: {tmp_path}/out.jpg is not a PNG file; give a name that ends in .png")
    with pytest.raises(RecipeError) as error:
        check_png_path(tmp_path / "no/out.png", "--plot-activations")
    assert (
        str(error.value)
        == f"--plot-activations: the folder {tmp_path}/no does not exist; create it, or give another path"
    )


def test_choose_samples_covers_classes() -> None:
    def choose(classes: int, images: int) -> tuple[Sample, ...]:
        return choose_samples([Sample(f"{label}/{n}", label) for label in range(classes) for n in range(images)])

    assert [sample.path for sample in choose(2, 8)] == ["0/1", "0/3", "0/5", "0/7", "1/1", "1/3", "1/5", "1/7"]
    assert Counter(sample.label for sample in choose(3, 9)) == {0: 3, 1: 3, 2: 2}
    assert [sample.label for sample in choose(10, 5)] == list(range(10))
    assert len({sample.label for sample in choose(1000, 2)}) == 12
    assert len(choose(2, 3)) == 6


def test_plot_augmentation_shows_the_views_of_training(
    workplace: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Pixels]] = {}
    original_batches = ImageLoader.batches

    def spy(self: ImageLoader, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in original_batches(self, *args, **kwargs):
            if kwargs.get("rng_key") is not None:
                for path, image in zip(batch.paths, batch.images, strict=True):
                    seen.setdefault(path, []).append(image.permute(1, 2, 0).numpy())
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(ImageLoader, "batches", spy)
        assert ftcli("train", "r.yaml", "--set", "stages.head.cache=off").code == 0
    plot_augmentation(read_recipe(Path("r.yaml")), Path("out.png"), NullReporter())
    picture = read_png(Path("out.png"))
    recipe = read_recipe(Path("r.yaml")).recipe
    assert list_epochs(recipe) == (("head", 1), ("head", 2), ("all", 1), ("all", 2))
    column = 32 * 3 + (120 - 96) + 8
    first = MARGIN + 2 * LINE_HEIGHT + 16 + LINE_HEIGHT
    num_china = 0
    for row in range(8):
        cells = [
            picture[first + row * 128 : first + row * 128 + 96 : 3, MARGIN + n * column : MARGIN + n * column + 96 : 3]
            for n in range(5)
        ]
        (path,) = [path for path, views in seen.items() if all(map(np.array_equal, views, cells[1:]))]
        num_china += path.split("/")[1] == ("china" if row < 4 else "flower")
    assert num_china == 8


def test_plot_augmentation_is_deterministic(workplace: Path) -> None:
    recipe_file = read_recipe(Path("r.yaml"))
    for name in ("one.png", "two.png"):
        plot_augmentation(recipe_file, Path(name), NullReporter())
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert sorted(path.name for path in workplace.iterdir()) == ["one.png", "r.yaml", "two.png"]


def test_plot_augmentation_skips_or_rejects_corrupt_images(workplace: Path, photo_folder: Path) -> None:
    for label in ("a", "b"):
        for number in range(4):
            target = Path(f"few/train/{label}/{number}.jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((photo_folder / f"train/china/{number}.jpg").read_bytes())
    stop = read_recipe(Path("r.yaml"), ["data.root=few"])
    skip = read_recipe(Path("r.yaml"), ["data.root=few", "data.on_corrupt_image=skip"])
    plot_augmentation(stop, Path("out.png"), NullReporter())
    full_plot = read_png(Path("out.png"))
    Path("out.png").unlink()
    for path in Path("few/train/a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_augmentation(stop, Path("out.png"), NullReporter())
    assert "is empty (0 bytes)" in str(error.value)
    assert not Path("out.png").exists()
    reporter = RecordingReporter()
    plot_augmentation(skip, Path("out.png"), reporter)
    assert all(message.startswith("left out: few/train/a/") for message in reporter.warnings)
    rows = (full_plot.shape[0] - read_png(Path("out.png")).shape[0]) // 128
    assert rows == len(reporter.warnings) > 0
    for path in Path("few/train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_augmentation(skip, Path("out.png"), NullReporter())
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
def test_find_grid_shapes(shape: tuple[int, ...] | None, grid: tuple[int, int] | None) -> None:
    assert infer_grid_size(shape, 5) == grid


def test_arrange_tokens_and_channels_first() -> None:
    maps = torch.arange(2 * 3 * 3.0).reshape(2, 3, 3)
    assert torch.equal(to_channels_first(maps[None], 1), maps)
    assert torch.equal(to_channels_first(maps.permute(1, 2, 0)[None], 1), maps)
    tokens = torch.cat([torch.full((1, 2), 99.0), maps.flatten(1).T])
    assert torch.equal(to_channels_first(tokens[None], 1), maps)


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
def test_choose_layers_spans_the_network(name: str, size: int, layers: tuple[str, ...]) -> None:
    model = create_model(name, True, size)
    summary = summarize(model, size)
    assert choose_layers(model, summary, find_head(model, summary).path, 1) == layers


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("timm/vit_tiny_patch16_224", 64), ("swin_t", 64), ("squeezenet1_1", 64), ("densenet121", 64)],
)
def test_compute_activations_matches_the_layers(name: str, size: int, photographs: dict[str, Image.Image]) -> None:
    torch.manual_seed(0)
    model = create_model(name, False, size)
    preprocessing = Preprocessing(size, size, "squash", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    head = find_head(model, summarize(model, size)).path
    activations = compute_activations(
        LoadedModel(name, model, preprocessing, head, None, "none"), photographs["china"], ()
    )
    assert activations.pixels.shape == (3, size, size)
    assert activations.filters is not None
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert torch.equal(activations.filters, first.weight)
    expected = (activations.pixels[None].float() / 255 - 0.5) / 0.2
    conv = torch.nn.functional.conv2d(expected, first.weight, first.bias, first.stride, first.padding)
    assert activations.layers[0].maps.shape[1] in (conv.shape[2], conv.shape[2] // 2)
    if activations.layers[0].name == activations.filter_layer:
        assert torch.allclose(activations.layers[0].maps, conv[0], atol=1e-4)
    for layer in activations.layers:
        assert layer.maps.ndim == 3
        assert layer.maps.shape[1] == layer.maps.shape[2] > 1
        assert layer.maps.numel() <= np.prod(layer.shape)
    with torch.inference_mode():
        assert torch.allclose(activations.probabilities.float(), model(expected).softmax(1)[0], atol=1e-5)


def test_check_layers_rejects() -> None:
    model = create_model("resnet18", True, 64)
    with pytest.raises(RecipeError) as error:
        check_layers(summarize(model, 64), ["layer2", "layr3", "avgpool"], 1)
    assert error.value.messages == (
        "--layer layr3: no image passes through a module of this name; did you mean 'layer3' or 'layer3.1' or "
        "'layer3.0'?",
        "--layer avgpool: its output is of shape [512, 1, 1], which is no image; choose a layer that gives one",
    )


def test_activation_colors() -> None:
    maps = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 8.0], [0.0, 0.0]], [[2.0, 4.0], [2.0, 2.0]]])
    assert find_most_varied_channels(maps) == (1, 2, 0)
    assert min_max_scale(maps[2]).tolist() == [[0, 1], [0, 0]]
    assert min_max_scale(maps[0]).tolist() == [[0, 0], [0, 0]]
    (kernel,) = filters_to_rgb(torch.tensor([[[[0.5]], [[-0.5]], [[0.0]]]]))
    assert kernel.tolist() == [[[255, 0, 128]]]
    (grey,) = filters_to_rgb(torch.tensor([[[[1.0, -1.0]], [[3.0, -3.0]]]]))
    assert grey.tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_plot_activations_of_checkpoint_shows_predicted_class(
    finished: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo_folder / "test/flower/20.jpg"
    written: list[str] = []
    write = Canvas.write

    def spy(self: Canvas, text: str, *position: Any, **kwargs: Any) -> Any:
        written.append(text)
        return write(self, text, *position, **kwargs)

    monkeypatch.setattr(Canvas, "write", spy)
    plot_activations("runs/photos/best_loss.pt", image, Path("out.png"), ["stage2"], NullReporter())
    loaded = load_classifier(finished / "runs/photos/best_loss.pt", torch.device("cpu"))
    classifier, checkpoint = loaded.classifier, loaded.checkpoint
    pixels = build_eval_transform(checkpoint.preprocessing)(read_rgb(image))
    with torch.inference_mode():
        confidence, predicted = classifier.compute_logits(pixels[None]).softmax(1)[0].max(0)
    assert written[1] == f"{classifier.classes[int(predicted)]} ({float(confidence):.1%}): {image}"
    assert written[4].startswith("stage2: 48 x 4 x 4; mean over 48 channels, on the input and alone; channels ")
    picture = read_png(Path("out.png"))
    expected = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((248, 248), Image.Resampling.BICUBIC)
    top = MARGIN + 3 * LINE_HEIGHT + 8 + LINE_HEIGHT
    assert np.array_equal(picture[top : top + 248, MARGIN : MARGIN + 248], np.asarray(expected))


def test_plot_activations_rejects_a_corrupt_image(workplace: Path) -> None:
    Path("broken.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        plot_activations(read_recipe(Path("r.yaml")), Path("broken.jpg"), Path("out.png"), (), NullReporter())
    assert str(error.value) == "--plot-activations: broken.jpg is empty (0 bytes); give another image"
    assert not Path("out.png").exists()
