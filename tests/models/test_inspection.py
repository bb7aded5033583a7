from __future__ import annotations

import json

import pytest

from ftcli.models.factory import create_model
from ftcli.models.freezing import resolve_freeze
from ftcli.models.heads import build_head, replace_head
from ftcli.models.inspection import count_parameters, inspect_model, list_layers, summarize_stage
from ftcli.models.summary import summarize
from ftcli.recipe.schema import FreezeThrough, Head, Sgd, Stage
from ftcli.results import BoundaryTensor, StageSummary


def _stage(freeze: object) -> Stage:
    return Stage.model_validate({"name": "one", "freeze": freeze, "epochs": 1, "optimizer": Sgd(name="sgd", lr=0.1)})


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


def test_list_layers_counts_trainable_parameters() -> None:
    network = create_model("resnet18", meta=True)
    layers = list_layers(network, summarize(network, 64), 2, {"layer1.0.conv1.weight", "conv1.weight"})
    by_name = {layer.name: layer for layer in layers}
    assert (by_name["conv1"].parameters, by_name["conv1"].trainable) == (9408, 0)
    assert by_name["layer1"].trainable == by_name["layer1"].parameters - 64 * 64 * 9
    assert by_name["layer1.0"].trainable == by_name["layer1.0"].parameters - 64 * 64 * 9
    assert by_name["layer2.1"].depth == 2
    assert "layer1.0.conv1" not in by_name


def test_summarize_stage_head() -> None:
    network = create_model("resnet152", meta=True)
    replace_head(network, "fc", build_head(network.get_submodule("fc"), Head(hidden=(256,), dropout=0.4), 3))
    summary = summarize(network, 224)
    frozen_names = resolve_freeze(network, summary, "fc", _stage("backbone"), "freeze")
    assert summarize_stage(network, frozen_names, "head", 224) == StageSummary(
        name="head",
        trainable=525_315,
        frozen=count_parameters(network) - 525_315,
        trained_layers=("fc",),
        frozen_layers=("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
        cut=(BoundaryTensor("flatten", (2048,)),),
    )


def test_summarize_stage_splits_partly_frozen_layers() -> None:
    network = create_model("vit_b_16", meta=True)
    stage = _stage(FreezeThrough(through="encoder.layers.encoder_layer_10"))
    frozen_names = resolve_freeze(network, summarize(network, 224), "heads.head", stage, "freeze")
    summary = summarize_stage(network, frozen_names, "late", 224)
    assert summary.trained_layers == ("encoder.layers.encoder_layer_11", "encoder.ln", "heads")
    assert summary.frozen_layers[:3] == ("class_token", "conv_proj", "encoder.pos_embedding")
    assert summary.cut is not None
    assert [crossing.shape for crossing in summary.cut] == [(197, 768)]


def test_summarize_stage_without_frozen_layers_has_no_cut() -> None:
    network = create_model("resnet18", meta=True)
    frozen_names = resolve_freeze(network, summarize(network, 64), "fc", _stage("none"), "freeze")
    summary = summarize_stage(network, frozen_names, "all", 64)
    assert (summary.frozen, summary.frozen_layers, summary.cut) == (0, (), ())
