from __future__ import annotations

import pytest

from ftcli.errors import RecipeError
from ftcli.planning import StagePlan, estimate_seconds, plan_recipe
from ftcli.recipe.loading import RecipeFile, recipe_from_dict

OPTIMIZER = {"name": "adamw", "lr": 1e-3}


def _read_recipe(*stages: dict[str, object], **backbone: object) -> RecipeFile:
    recipe = {
        "name": "planned",
        "data": {"root": "nowhere", "download": "solar-cells", "image_size": 64},
        "backbone": {"name": "squeezenet1_1", "weights": "none", **backbone},
        "stages": list(stages),
    }
    return recipe_from_dict(recipe, "r.yaml")


def _stage(name: str, **settings: object) -> dict[str, object]:
    return {"name": name, "freeze": "backbone", "epochs": 2, "optimizer": OPTIMIZER, **settings}


def test_plan_recipe_reports_errors_of_all_stages() -> None:
    recipe_file = _read_recipe(
        {"name": "fit", "freeze": "backbone", "fit": "logistic_regression"},
        _stage("one", freeze=["*"], lr_mult={"head9": 2.0}),
        _stage("two", freeze={"through": "features.99"}),
    )
    with pytest.raises(RecipeError) as error:
        plan_recipe(recipe_file)
    assert [message.partition("; ")[0] for message in error.value.messages] == [
        "r.yaml: stages.fit.fit: fit needs a linear layer on a feature vector, and the head of squeezenet1_1, "
        "classifier.1, is not one (Conv2d)",
        "r.yaml: stages.one.freeze: [*] freezes all parameters in stage 'one'",
        "r.yaml: stages.one.lr_mult: 'head9' matches no parameter of the network",
        "r.yaml: stages.two.freeze: unknown module 'features.99'",
    ]


def test_estimate_seconds_counts_backward_pass_of_trainable_part() -> None:
    head_stage, full_stage = plan_recipe(_read_recipe(_stage("one"), _stage("two", freeze="none"))).stages
    assert isinstance(head_stage, StagePlan)
    assert isinstance(full_stage, StagePlan)
    assert full_stage.backward_fraction == 1
    assert head_stage.backward_fraction < 0.1
    assert estimate_seconds(full_stage, 10, 5, 1.0) == 2 * (10 * 3 + 5)
