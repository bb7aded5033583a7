from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
import torchvision

from ftcli.errors import RecipeError
from ftcli.models import factory
from ftcli.models.summary import summarize

LITE0 = "timm/efficientnet_lite0"
LOCATION = "x.yaml:4:15: data.image_size"


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
            "x.yaml:3:9: backbone.name: unknown model 'resnet19'; "
            "did you mean 'resnet18' or 'resnet152' or 'resnet101'?",
        ),
        (
            "timm/efficientnet_lite9",
            "x.yaml:3:9: backbone.name: unknown model 'timm/efficientnet_lite9'; "
            "did you mean 'timm/efficientnet_lite4' or 'timm/efficientnet_lite3' or 'timm/efficientnet_lite2'?",
        ),
    ],
)
def test_check_model_suggests_near_names(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        factory.check_model(name, "x.yaml:3:9: backbone.name")
    assert str(error.value) == sentence


def test_check_model_without_timm_names_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find_spec_without_timm(name: str) -> ModuleSpec | None:
        return None if name == "timm" else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec_without_timm)
    assert factory.list_timm_models() == ()
    with pytest.raises(RecipeError) as error:
        factory.check_model(LITE0, "x.yaml: backbone.name")
    assert str(error.value) == (
        f"x.yaml: backbone.name: {LITE0!r} needs the package timm; run pip install '.[timm]' in the ftcli repository"
    )


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet", "swin_t", "vit_b_16", LITE0])
def test_create_model_on_meta_uses_no_random_numbers(name: str) -> None:
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
        factory.create_model("vit_b_16", meta=True, image_size=100, location=LOCATION)
    assert str(error.value) == (
        f"{LOCATION}: vit_b_16 cannot be created for images of 100 x 100 pixels "
        "(Input shape indivisible by patch size!); choose another size"
    )


def test_create_model_on_meta_allows_forward_in_constructor() -> None:
    network = factory.create_model("timm/vitamin_small_224", meta=True, image_size=256)
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert summarize(network, 256).output == (768,)  # its weights have no head


def test_create_model_reports_constructor_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("no such block.\nnor another")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(RecipeError) as error:
        factory.create_model("resnet18", meta=True, location="x.yaml:2:9: backbone.name")
    assert str(error.value) == (
        "x.yaml:2:9: backbone.name: resnet18 cannot be created (no such block); choose another model"
    )


@pytest.mark.parametrize(
    ("name", "fixed"),
    [("vit_b_16", True), ("maxvit_t", True), ("timm/vit_tiny_patch16_224", True), ("resnet18", False), (LITE0, False)],
)
def test_has_fixed_image_size(name: str, fixed: bool) -> None:
    assert factory.has_fixed_image_size(name) is fixed


def test_create_and_summarize_uses_image_size() -> None:
    network, summary = factory.create_and_summarize("swin_t", 100, LOCATION)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert (summary.image_size, summary.output) == (100, (1000,))


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        (
            "vit_b_16",
            100,
            "vit_b_16 cannot be created for images of 100 x 100 pixels (Input shape indivisible by patch size!); "
            "choose 96 or 112",
        ),
        (
            "inception_v3",
            64,
            "the network does not support images of 64 x 64 pixels (Calculated padded input size per channel: (2 x 2). "
            "Kernel size: (3 x 3). Kernel size can't be greater than actual input size); choose 80",
        ),
        (
            "maxvit_t",
            64,
            "maxvit_t cannot be created for images of 64 x 64 pixels (Input size (16, 16) of block 0 is not divisible "
            "by partition size 7. Consider changing the partition size or the input size); choose 224",
        ),
        (
            "swin_t",
            3,
            "the network does not support images of 3 x 3 pixels (Calculated padded input size per channel: (3 x 3). "
            "Kernel size: (4 x 4). Kernel size can't be greater than actual input size); choose 4",
        ),
    ],
)
def test_create_and_summarize_suggests_nearest_image_sizes(name: str, size: int, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        factory.create_and_summarize(name, size, LOCATION)
    assert str(error.value) == f"{LOCATION}: {sentence}"


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [("maxvit_t", 300, (224, 448)), ("timm/hiera_tiny_224", 100, (96, 128)), ("alexnet", 40, (64,))],
)
def test_find_nearest_image_sizes_returns_sizes_below_and_above(name: str, size: int, sizes: tuple[int, ...]) -> None:
    assert factory.find_nearest_image_sizes(name, size) == sizes
    for supported in sizes:
        factory.create_and_summarize(name, supported, LOCATION)
