from __future__ import annotations

import json

import pytest

from ftcli.inspection.overview import inspect_model


def test_inspect_model_resnet152_matches_paper() -> None:
    inspection = inspect_model("resnet152", 1)
    assert inspection.parameters == inspection.trainable == 60_192_808
    assert (inspection.head.path, inspection.head.in_features, inspection.head.out_features) == ("fc", 2048, 1000)
    assert inspection.multiply_adds == 11_513_626_624
    assert inspection.preprocessing.image_size == 224
    assert [entry.name for entry in inspection.weights] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    assert [layer.name for layer in inspection.layers] == names
    assert sum(layer.parameters for layer in inspection.layers) == 60_192_808
    assert inspection.layers[6].output_shape == (1024, 14, 14)


@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_b_32", "timm/efficientnet_lite0"])
def test_inspect_model_is_json_serializable(name: str) -> None:
    plain = json.loads(json.dumps(inspect_model(name, 2).to_dict()))
    assert plain["name"] == name
    assert {layer["depth"] for layer in plain["layers"]} == {1, 2}


def test_inspect_model_uses_image_size_of_default_weights() -> None:
    assert inspect_model("vit_h_14", 1).multiply_adds / 1e9 == pytest.approx(1016.717, abs=1e-3)
