from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from ftcli.errors import RecipeError
from ftcli.models.anatomy import Anatomy, examine
from ftcli.models.freezing import (
    Freezing,
    apply_freezing,
    find_faults,
    list_frozen_tensors,
    list_norm_and_bias,
    resolve_freezing,
    resolve_rates,
    set_modes,
)
from ftcli.models.heads import build_head, replace_head
from ftcli.models.zoo import build_network
from ftcli.recipe.schema import Head, Stage

PLACE = "x.yaml:20:13: stages.0.freeze"


@functools.cache
def _sketch(name: str, head: str) -> tuple[nn.Module, Anatomy]:
    network = build_network(name, meta=True)
    replace_head(network, head, build_head(network.get_submodule(head), Head(hidden=(8,), dropout=0.5), 3))
    return network, examine(network, 224)


def _stage(freeze: Any, **more: Any) -> Stage:
    return Stage.model_validate(
        {"name": "one", "freeze": freeze, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}, **more}
    )


def _resolve(freeze: Any, name: str = "resnet18", head: str = "fc", **more: Any) -> Freezing:
    network, anatomy = _sketch(name, head)
    return resolve_freezing(network, anatomy, head, _stage(freeze, **more), PLACE)


def _parameters(name: str = "resnet18", head: str = "fc") -> set[str]:
    return {key for key, _ in _sketch(name, head)[0].named_parameters()}


def _faults(freeze: Any, name: str = "resnet18", head: str = "fc") -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        _resolve(freeze, name, head)
    return error.value.faults


@pytest.mark.covers("stages.freeze")
def test_backbone_is_all_but_the_head() -> None:
    freezing = _resolve("backbone")
    assert _parameters() - freezing.parameters == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    modules = {name for name, _ in _sketch("resnet18", "fc")[0].named_modules()}
    assert modules - freezing.modules == {"fc", "fc.0", "fc.1", "fc.2", "fc.3"}


def test_the_containers_above_a_deep_head_are_in_eval_mode() -> None:
    freezing = _resolve("backbone", "mobilenet_v3_small", "classifier.3")
    assert {"", "classifier", "classifier.0", "classifier.2"} <= freezing.modules
    assert not any(name.startswith("classifier.3") for name in freezing.modules | freezing.parameters)


def test_none_is_nothing() -> None:
    assert _resolve("none") == Freezing(frozenset(), frozenset())


@pytest.mark.covers("stages.freeze")
def test_a_pattern_takes_in_all_below() -> None:
    freezing = _resolve(["conv1", "layer1"])
    assert freezing.parameters == {n for n in _parameters() if n.startswith(("conv1.", "layer1."))}
    assert {"conv1", "layer1", "layer1.0", "layer1.1.relu"} <= freezing.modules
    assert not {"", "bn1", "relu", "layer2"} & freezing.modules


def test_a_glob_matches_module_names() -> None:
    freezing = _resolve(["layer[12]"])
    assert freezing.parameters == {n for n in _parameters() if n.startswith(("layer1.", "layer2."))}


def test_a_glob_matches_parameter_names_and_a_module_is_frozen_once_all_of_its_own_are() -> None:
    freezing = _resolve(["*.bias", "layer1.0.bn1.weight"])
    assert freezing.parameters == {n for n in _parameters() if n.endswith(".bias")} | {"layer1.0.bn1.weight"}
    assert freezing.modules == {"layer1.0.bn1"}


def test_a_name_is_no_prefix() -> None:
    assert "layer1.0.conv1.weight" not in _resolve(["conv1"]).parameters


def test_aliases_mean_the_same_in_every_model() -> None:
    assert _resolve(["backbone"]) == _resolve("backbone")
    swin = _resolve(["head"], "swin_t", "head")
    vit = _resolve(["head"], "vit_b_16", "heads.head")
    assert swin.parameters == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    assert vit.parameters == {f"heads.{name}" for name in swin.parameters}


def test_patterns_that_match_nothing_are_told_all_at_once() -> None:
    assert _faults(["layer9", "layer1", "clasifier"]) == (
        f"{PLACE}: 'layer9' matches no module or parameter of the network; "
        "did you mean 'layer4' or 'layer3' or 'layer2'?",
        f"{PLACE}: 'clasifier' matches no module or parameter of the network; known: backbone, bn1, bn1.bias, "
        "bn1.weight, conv1, conv1.weight, fc, fc.0, fc.0.bias, fc.0.weight, fc.3, fc.3.bias and 112 more",
    )


def test_a_stage_must_train_something() -> None:
    assert _faults(["*"]) == (f"{PLACE}: [*] leaves stage 'one' nothing to train; let at least the head train",)
    assert _faults({"through": "fc"}) == (
        f"{PLACE}: {{through: fc}} leaves stage 'one' nothing to train; let at least the head train",
    )


@pytest.mark.covers("stages.freeze.through")
def test_through_is_everything_up_to_the_end_of_a_module() -> None:
    freezing = _resolve({"through": "layer2"})
    assert freezing.parameters == {n for n in _parameters() if not n.startswith(("layer3.", "layer4.", "fc."))}
    assert {"conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer2.1.relu"} <= freezing.modules
    assert not {"", "layer3", "layer3.0.conv1", "avgpool", "fc"} & freezing.modules


def test_through_follows_the_image_and_not_the_names() -> None:
    freezing = _resolve({"through": "layer2.0.conv2"})
    assert "layer2.0.downsample.0.weight" not in freezing.parameters
    assert "layer2.0.bn1.weight" in freezing.parameters
    assert "layer2.0.conv1" in freezing.modules
    assert not {"layer2", "layer2.0", "layer2.0.bn2"} & freezing.modules


def test_through_takes_in_the_parameters_of_containers() -> None:
    freezing = _resolve({"through": "encoder.layers.encoder_layer_0"}, "vit_b_16", "heads.head")
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= freezing.parameters
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in freezing.parameters
    assert not any("encoder_layer_1." in name for name in freezing.parameters)
    assert "encoder.dropout" in freezing.modules
    assert not {"", "encoder", "encoder.layers"} & freezing.modules


def test_through_a_module_that_is_unknown_or_not_called_is_refused() -> None:
    assert _faults({"through": "layer5"}) == (
        f"{PLACE}: no module is called 'layer5'; did you mean 'layer4' or 'layer3' or 'layer2'?",
    )
    assert _faults({"through": "features.1.0.attn.qkv"}, "swin_t", "head") == (
        f"{PLACE}: no image passes through 'features.1.0.attn.qkv' itself; "
        "name a module above it or a list of patterns",
    )


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale() -> None:
    freezing = _resolve("none", batch_norm="frozen")
    assert freezing.parameters == frozenset()
    kinds = {type(_sketch("resnet18", "fc")[0].get_submodule(name)) for name in freezing.modules}
    assert kinds == {nn.BatchNorm2d}
    assert len(freezing.modules) == 20


def test_frozen_batch_norm_knows_those_of_timm() -> None:
    freezing = _resolve("none", "timm/efficientnet_lite0", "classifier", batch_norm="frozen")
    assert {"bn1", "bn2", "blocks.0.0.bn1"} <= freezing.modules


def test_all_faults_of_a_stage_come_together() -> None:
    network, anatomy = _sketch("resnet18", "fc")
    stage = _stage(["layer9"], lr_mult={"lair1": 2.0, "relu": 3.0})
    assert find_faults(network, anatomy, "fc", stage, lambda key: f"x.yaml: stages.0.{key}") == (
        "x.yaml: stages.0.freeze: 'layer9' matches no module or parameter of the network; "
        "did you mean 'layer4' or 'layer3' or 'layer2'?",
        "x.yaml: stages.0.lr_mult: 'lair1' matches no parameter of the network; "
        "did you mean 'layer1' or 'layer4.1' or 'layer3.1'?",
        "x.yaml: stages.0.lr_mult: 'relu' matches no parameter of the network; known: backbone, bn1, bn1.bias, "
        "bn1.weight, conv1, conv1.weight, fc, fc.0, fc.0.bias, fc.0.weight, fc.3, fc.3.bias and 112 more",
    )
    assert find_faults(network, anatomy, "fc", _stage("backbone"), lambda key: key) == ()


@pytest.mark.covers("stages.lr_mult")
def test_the_last_pattern_that_matches_gives_the_rate() -> None:
    network, _ = _sketch("resnet18", "fc")
    rates = resolve_rates(network, "fc", {"backbone": 0.1, "layer4": 0.5, "*.bias": 2.0, "head": 10.0}, PLACE)
    assert set(rates) == _parameters()
    assert rates["conv1.weight"] == 0.1
    assert rates["layer4.0.conv1.weight"] == 0.5
    assert rates["layer4.0.bn1.bias"] == 2.0
    assert rates["fc.3.bias"] == rates["fc.0.weight"] == 10.0
    assert set(resolve_rates(network, "fc", {}, PLACE).values()) == {1.0}


def test_freezing_is_applied_both_ways() -> None:
    network = build_network("resnet18", meta=True)
    apply_freezing(network, Freezing(frozenset({"conv1.weight", "fc.bias"}), frozenset()))
    apply_freezing(network, Freezing(frozenset({"conv1.weight"}), frozenset()))
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == ["conv1.weight"]


def test_a_frozen_parameter_keeps_no_gradient() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network(torch.ones(1, 2)).sum().backward()
    apply_freezing(network, Freezing(frozenset({"0.weight", "0.bias"}), frozenset()))
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["1.weight", "1.bias"]


def test_modes_are_those_of_the_freezing_and_no_others() -> None:
    network = build_network("resnet18", meta=True)
    set_modes(network, Freezing(frozenset(), frozenset({"layer1", "bn1"})))
    assert {name for name, module in network.named_modules() if not module.training} == {"layer1", "bn1"}


@pytest.mark.parametrize("freeze", ["backbone", ["conv1", "bn1", "layer[123]"], {"through": "layer3"}])
def test_frozen_tensors_keep_their_bits_in_a_step(freeze: Any) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", meta=False)
    anatomy = examine(network, 64)
    freezing = resolve_freezing(network, anatomy, "fc", _stage(freeze), PLACE)
    apply_freezing(network, freezing)
    set_modes(network, freezing)
    before = {name: tensor.clone() for name, tensor in list_frozen_tensors(network, freezing).items()}
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    network(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert {"bn1.running_mean", "bn1.num_batches_tracked", "layer3.1.bn2.running_var"} <= set(before)
    frozen = list_frozen_tensors(network, freezing)
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == set(start) - set(before)


def test_weight_decay_may_skip_norms_and_biases() -> None:
    network, _ = _sketch("convnext_tiny", "classifier.2")
    skipped = list_norm_and_bias(network)
    assert {"features.0.0.bias", "features.0.1.weight", "features.1.0.block.2.weight"} <= skipped
    assert not {"features.0.0.weight", "features.1.0.layer_scale", "classifier.2.0.weight"} & skipped
