from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from ftcli.models.factory import create_model
from ftcli.models.freezing import (
    FrozenNames,
    list_frozen_tensors,
    list_norm_and_bias,
    resolve_freeze,
    resolve_lr_mults,
    set_requires_grad,
    set_train_mode,
    summarize_stage,
)
from ftcli.models.heads import build_head, replace_head
from ftcli.models.summary import ModelSummary, count_parameters, summarize
from ftcli.recipe.schema import Head, Stage
from ftcli.results import BoundaryTensorInfo, StageSummary

LOCATION = "x.yaml:20:13: stages.0.freeze"


@functools.cache
def _create_meta_model(name: str, head: str) -> tuple[nn.Module, ModelSummary]:
    network = create_model(name, meta=True)
    replace_head(network, head, build_head(network.get_submodule(head), Head(hidden=(8,), dropout=0.5), 3))
    return network, summarize(network, 224)


def _stage(freeze: Any, **more: Any) -> Stage:
    return Stage.model_validate(
        {"name": "one", "freeze": freeze, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}, **more}
    )


def _resolve(freeze: Any, name: str = "resnet18", head: str = "fc", **more: Any) -> FrozenNames:
    errors: list[str] = []
    network, summary = _create_meta_model(name, head)
    frozen_names = resolve_freeze(network, summary, head, _stage(freeze, **more), LOCATION, errors)
    assert errors == []
    return frozen_names


def _parameters(name: str = "resnet18", head: str = "fc") -> set[str]:
    return {key for key, _ in _create_meta_model(name, head)[0].named_parameters()}


def _errors(freeze: Any, name: str = "resnet18", head: str = "fc") -> tuple[str, ...]:
    errors: list[str] = []
    network, summary = _create_meta_model(name, head)
    resolve_freeze(network, summary, head, _stage(freeze), LOCATION, errors)
    return tuple(errors)


@pytest.mark.covers("stages.freeze")
def test_resolve_freeze_backbone_is_all_but_head() -> None:
    frozen_names = _resolve("backbone")
    assert _parameters() - frozen_names.parameters == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    modules = {name for name, _ in _create_meta_model("resnet18", "fc")[0].named_modules()}
    assert modules - frozen_names.modules == {"fc", "fc.0", "fc.1", "fc.2", "fc.3"}


def test_resolve_freeze_puts_containers_of_head_in_eval_mode() -> None:
    frozen_names = _resolve("backbone", "mobilenet_v3_small", "classifier.3")
    assert {"", "classifier", "classifier.0", "classifier.2"} <= frozen_names.modules
    assert not any(name.startswith("classifier.3") for name in frozen_names.modules | frozen_names.parameters)


def test_resolve_freeze_none_is_empty() -> None:
    assert _resolve("none") == FrozenNames(frozenset(), frozenset())


@pytest.mark.covers("stages.freeze")
def test_resolve_freeze_pattern_includes_submodules() -> None:
    frozen_names = _resolve(["conv1", "layer1"])
    assert frozen_names.parameters == {n for n in _parameters() if n.startswith(("conv1.", "layer1."))}
    assert {"conv1", "layer1", "layer1.0", "layer1.1.relu"} <= frozen_names.modules
    assert not {"", "bn1", "relu", "layer2"} & frozen_names.modules


def test_resolve_freeze_glob_matches_modules() -> None:
    frozen_names = _resolve(["layer[12]"])
    assert frozen_names.parameters == {n for n in _parameters() if n.startswith(("layer1.", "layer2."))}


def test_resolve_freeze_glob_matches_parameters() -> None:
    frozen_names = _resolve(["*.bias", "layer1.0.bn1.weight"])
    assert frozen_names.parameters == {n for n in _parameters() if n.endswith(".bias")} | {"layer1.0.bn1.weight"}
    assert frozen_names.modules == {"layer1.0.bn1"}


def test_resolve_freeze_name_is_not_a_prefix() -> None:
    assert "layer1.0.conv1.weight" not in _resolve(["conv1"]).parameters


def test_resolve_freeze_aliases_work_in_every_model() -> None:
    assert _resolve(["backbone"]) == _resolve("backbone")
    swin = _resolve(["head"], "swin_t", "head")
    vit = _resolve(["head"], "vit_b_16", "heads.head")
    assert swin.parameters == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    assert vit.parameters == {f"heads.{name}" for name in swin.parameters}


def test_resolve_freeze_reports_all_unmatched_patterns() -> None:
    assert _errors(["layer9", "layer1", "clasifier"]) == (
        f"{LOCATION}: 'layer9' matches no module or parameter of the network; "
        "did you mean 'layer4' or 'layer3' or 'layer2'?",
        f"{LOCATION}: 'clasifier' matches no module or parameter of the network; known: backbone, bn1, bn1.bias, "
        "bn1.weight, conv1, conv1.weight, fc, fc.0, fc.0.bias, fc.0.weight, fc.3, fc.3.bias and 112 more",
    )


def test_resolve_freeze_rejects_stage_without_trainable_parameters() -> None:
    assert _errors(["*"]) == (f"{LOCATION}: [*] freezes all parameters in stage 'one'; unfreeze at least the head",)
    assert _errors({"through": "fc"}) == (
        f"{LOCATION}: {{through: fc}} freezes all parameters in stage 'one'; unfreeze at least the head",
    )


@pytest.mark.covers("stages.freeze.through")
def test_resolve_freeze_through_freezes_up_to_end_of_module() -> None:
    frozen_names = _resolve({"through": "layer2"})
    assert frozen_names.parameters == {n for n in _parameters() if not n.startswith(("layer3.", "layer4.", "fc."))}
    assert {"conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer2.1.relu"} <= frozen_names.modules
    assert not {"", "layer3", "layer3.0.conv1", "avgpool", "fc"} & frozen_names.modules


def test_resolve_freeze_through_follows_execution_order() -> None:
    frozen_names = _resolve({"through": "layer2.0.conv2"})
    assert "layer2.0.downsample.0.weight" not in frozen_names.parameters
    assert "layer2.0.bn1.weight" in frozen_names.parameters
    assert "layer2.0.conv1" in frozen_names.modules
    assert not {"layer2", "layer2.0", "layer2.0.bn2"} & frozen_names.modules


def test_resolve_freeze_through_includes_container_parameters() -> None:
    frozen_names = _resolve({"through": "encoder.layers.encoder_layer_0"}, "vit_b_16", "heads.head")
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= frozen_names.parameters
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in frozen_names.parameters
    assert not any("encoder_layer_1." in name for name in frozen_names.parameters)
    assert "encoder.dropout" in frozen_names.modules
    assert not {"", "encoder", "encoder.layers"} & frozen_names.modules


def test_resolve_freeze_through_rejects_unknown_or_uncalled_module() -> None:
    assert _errors({"through": "layer5"}) == (
        f"{LOCATION}: unknown module 'layer5'; did you mean 'layer4' or 'layer3' or 'layer2'?",
    )
    assert _errors({"through": "features.1.0.attn.qkv"}, "swin_t", "head") == (
        f"{LOCATION}: module 'features.1.0.attn.qkv' is not called in the forward pass; "
        "give a module that contains it or a list of patterns",
    )


def test_resolve_freeze_frozen_batch_norm_trains_scale() -> None:
    frozen_names = _resolve("none", batch_norm="frozen")
    assert frozen_names.parameters == frozenset()
    types = {type(_create_meta_model("resnet18", "fc")[0].get_submodule(name)) for name in frozen_names.modules}
    assert types == {nn.BatchNorm2d}
    assert len(frozen_names.modules) == 20


def test_resolve_freeze_frozen_batch_norm_includes_timm_layers() -> None:
    frozen_names = _resolve("none", "timm/efficientnet_lite0", "classifier", batch_norm="frozen")
    assert {"bn1", "bn2", "blocks.0.0.bn1"} <= frozen_names.modules


def test_resolve_lr_mults_reports_all_unmatched_patterns() -> None:
    network, _ = _create_meta_model("resnet18", "fc")
    errors: list[str] = []
    resolve_lr_mults(network, "fc", {"lair1": 2.0, "head": 1.0, "relu": 3.0}, "x.yaml: stages.0.lr_mult", errors)
    assert errors == [
        "x.yaml: stages.0.lr_mult: 'lair1' matches no parameter of the network; "
        "did you mean 'layer1' or 'layer4.1' or 'layer3.1'?",
        "x.yaml: stages.0.lr_mult: 'relu' matches no parameter of the network; known: backbone, bn1, bn1.bias, "
        "bn1.weight, conv1, conv1.weight, fc, fc.0, fc.0.bias, fc.0.weight, fc.3, fc.3.bias and 112 more",
    ]


@pytest.mark.covers("stages.lr_mult")
def test_resolve_lr_mults_uses_last_matching_pattern() -> None:
    network, _ = _create_meta_model("resnet18", "fc")
    lr_mult = {"backbone": 0.1, "layer4": 0.5, "*.bias": 2.0, "head": 10.0}
    errors: list[str] = []
    lr_mults = resolve_lr_mults(network, "fc", lr_mult, LOCATION, errors)
    assert errors == []
    assert set(lr_mults) == _parameters()
    assert lr_mults["conv1.weight"] == 0.1
    assert lr_mults["layer4.0.conv1.weight"] == 0.5
    assert lr_mults["layer4.0.bn1.bias"] == 2.0
    assert lr_mults["fc.3.bias"] == lr_mults["fc.0.weight"] == 10.0
    assert set(resolve_lr_mults(network, "fc", {}, LOCATION, errors).values()) == {1.0}


def test_set_requires_grad_freezes_and_unfreezes() -> None:
    network = create_model("resnet18", meta=True)
    set_requires_grad(network, FrozenNames(frozenset({"conv1.weight", "fc.bias"}), frozenset()))
    set_requires_grad(network, FrozenNames(frozenset({"conv1.weight"}), frozenset()))
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == ["conv1.weight"]


def test_set_requires_grad_clears_gradients() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network(torch.ones(1, 2)).sum().backward()
    set_requires_grad(network, FrozenNames(frozenset({"0.weight", "0.bias"}), frozenset()))
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["1.weight", "1.bias"]


def test_set_train_mode_sets_frozen_modules_to_eval() -> None:
    network = create_model("resnet18", meta=True)
    set_train_mode(network, FrozenNames(frozenset(), frozenset({"layer1", "bn1"})))
    assert {name for name, module in network.named_modules() if not module.training} == {"layer1", "bn1"}


@pytest.mark.parametrize("freeze", ["backbone", ["conv1", "bn1", "layer[123]"], {"through": "layer3"}])
def test_frozen_tensors_are_unchanged_by_training_step(freeze: Any) -> None:
    torch.manual_seed(0)
    network = create_model("resnet18", meta=False)
    summary = summarize(network, 64)
    frozen_names = resolve_freeze(network, summary, "fc", _stage(freeze), LOCATION, errors=[])
    set_requires_grad(network, frozen_names)
    set_train_mode(network, frozen_names)
    before = {name: tensor.clone() for name, tensor in list_frozen_tensors(network, frozen_names).items()}
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    network(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert {"bn1.running_mean", "bn1.num_batches_tracked", "layer3.1.bn2.running_var"} <= set(before)
    frozen = list_frozen_tensors(network, frozen_names)
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, start[name])}
    assert changed == set(start) - set(before)


def test_list_norm_and_bias_returns_norms_and_biases() -> None:
    network, _ = _create_meta_model("convnext_tiny", "classifier.2")
    skipped = list_norm_and_bias(network)
    assert {"features.0.0.bias", "features.0.1.weight", "features.1.0.block.2.weight"} <= skipped
    assert not {"features.0.0.weight", "features.1.0.layer_scale", "classifier.2.0.weight"} & skipped


def test_summarize_stage_head() -> None:
    network = create_model("resnet152", meta=True)
    replace_head(network, "fc", build_head(network.get_submodule("fc"), Head(hidden=(256,), dropout=0.4), 3))
    summary = summarize(network, 224)
    frozen_names = resolve_freeze(network, summary, "fc", _stage("backbone"), "freeze", errors=[])
    assert summarize_stage(network, frozen_names, "head", 224) == StageSummary(
        name="head",
        trainable=525_315,
        frozen=count_parameters(network) - 525_315,
        trained_layers=("fc",),
        frozen_layers=("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
        cut=(BoundaryTensorInfo("flatten", (2048,)),),
    )


def test_summarize_stage_splits_partly_frozen_layers() -> None:
    network = create_model("vit_b_16", meta=True)
    stage = _stage({"through": "encoder.layers.encoder_layer_10"})
    frozen_names = resolve_freeze(network, summarize(network, 224), "heads.head", stage, "freeze", errors=[])
    summary = summarize_stage(network, frozen_names, "late", 224)
    assert summary.trained_layers == ("encoder.layers.encoder_layer_11", "encoder.ln", "heads")
    assert summary.frozen_layers[:3] == ("class_token", "conv_proj", "encoder.pos_embedding")
    assert summary.cut is not None
    assert [tensor.shape for tensor in summary.cut] == [(197, 768)]


def test_summarize_stage_without_frozen_layers_has_no_cut() -> None:
    network = create_model("resnet18", meta=True)
    frozen_names = resolve_freeze(network, summarize(network, 64), "fc", _stage("none"), "freeze", errors=[])
    summary = summarize_stage(network, frozen_names, "all", 64)
    assert (summary.frozen, summary.frozen_layers, summary.cut) == (0, (), ())
