"""Train, save, load and evaluate a network of every family of torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.models.factory import build_model
from ftcli.models.freezing import (
    check_frozen_unchanged,
    hash_tensors,
    list_frozen_tensors,
    list_norm_and_bias,
    set_requires_grad,
    set_train_mode,
)
from ftcli.models.heads import reset_classifier
from ftcli.planning import Plan, StagePlan, plan_recipe
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.runs.checkpoint import Checkpoint, write_checkpoint
from ftcli.training.optim import build_optimizer

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_16": 32,
}
CLASSES = ("a", "b", "c")
CPU = torch.device("cpu")


def _write_recipe(name: str, size: int) -> RecipeFile:
    optimizer = {"name": "adamw", "lr": 1e-4}
    return recipe_from_dict(
        {
            "name": "family",
            "data": {"root": "nowhere", "classes": list(CLASSES), "image_size": size},
            "backbone": {"name": name, "weights": "none"},
            "stages": [
                {"name": "head", "freeze": "backbone", "epochs": 1, "optimizer": optimizer},
                {"name": "all", "freeze": "none", "epochs": 1, "optimizer": optimizer},
            ],
        },
        "family.yaml",
    )


def _train_one_step(classifier: Classifier, plan: StagePlan, images: torch.Tensor) -> None:
    model = classifier.model
    set_requires_grad(model, plan.frozen_names)
    set_train_mode(model, plan.frozen_names)
    frozen = list_frozen_tensors(model, plan.frozen_names)
    before = hash_tensors(frozen)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(model, plan.stage.optimizer, plan.lr_mults, list_norm_and_bias(model))
    loss = functional.cross_entropy(classifier.compute_logits(images), torch.arange(len(images)) % len(CLASSES))
    torch.autograd.backward(loss)
    optimizer.step()
    check_frozen_unchanged(before, frozen, plan.stage.name)
    assert any(not torch.equal(p, trained[name]) for name, p in model.named_parameters() if name in trained)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)


def _predict(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    classifier.model.eval()
    with torch.no_grad():
        return classifier.compute_logits(images)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_family_trains_and_reloads_bitwise(name: str, size: int, tmp_path: Path) -> None:
    recipe_file = _write_recipe(name, size)
    plan = plan_recipe(recipe_file)
    model = build_model(plan.recipe, size)
    reset_classifier(model, plan.recipe, plan.head.path, len(CLASSES))
    classifier = Classifier.create(model, plan.preprocessing, CLASSES, CPU, plan.recipe.precision)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for stage in plan.stages:
        assert isinstance(stage, StagePlan)
        torch.manual_seed(1)
        _train_one_step(classifier, stage, images)
    logits = _predict(classifier, images)
    assert logits.shape == (4, 3)
    assert logits.isfinite().all()

    write_checkpoint(_make_checkpoint(plan, classifier), tmp_path / "best.pt")
    loaded_classifier = load_classifier(tmp_path / "best.pt", CPU)
    loaded = loaded_classifier.classifier
    assert loaded_classifier.checkpoint.classes == loaded.classes == CLASSES
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(_predict(loaded, images), logits)
    assert not _list_aux_tensors(loaded.model)


def _make_checkpoint(plan: Plan, classifier: Classifier) -> Checkpoint:
    return Checkpoint(
        kind="best",
        recipe=plan.recipe.model_dump(mode="json"),
        classes=CLASSES,
        preprocessing=plan.preprocessing,
        head_path=plan.head.path,
        stage="all",
        epoch=1,
        metrics={},
        origin={},
        splits={},
        state=classifier.model.state_dict(),
    )


def _list_aux_tensors(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if "aux" in name.lower()]
