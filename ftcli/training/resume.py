"""The start of a run: from a recipe, from the weights of a checkpoint, or an exact resume from last.pt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.recipe.schema import Recipe
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.run_dir import RunDir, choose_run_dir, find_checkpoint

logger = logging.getLogger(__name__)

_RESUME_SAFE_KEYS = ("data.on_corrupt_image", "data.num_workers")
"""Settings that an exact resume may change: no tensor computed from a readable image depends on them."""


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """The arguments of `ftcli train`. `overrides` are for the recipe of a checkpoint; `recipe` includes them."""

    recipe: RecipeFile | None = None
    stage: str | None = None
    resume: Path | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    device: str
    rehash: bool = False


@dataclass(frozen=True, kw_only=True)
class StartPoint:
    """The recipe, stages, run directory and, unless training starts from a recipe, the checkpoint of a run.

    An exact resume also takes over the checkpoint's progress and run directory.
    """

    recipe_file: RecipeFile
    stage_names: tuple[str, ...]
    run_dir: RunDir
    rehash: bool
    checkpoint: Checkpoint | None = None
    checkpoint_path: Path | None = None
    is_exact_resume: bool = False

    @property
    def saved_progress(self) -> Mapping[str, Any] | None:
        """The progress in the last.pt of an exact resume."""
        return self.checkpoint.progress if self.checkpoint is not None and self.is_exact_resume else None

    @property
    def is_finished(self) -> bool:
        """True for an exact resume of a finished run."""
        return self.saved_progress is not None and bool(self.saved_progress["finished"])


def resolve_start(args: TrainArgs) -> StartPoint:
    """Return where training starts. Writes nothing.

    Raises RecipeError for arguments that contradict each other, CheckpointError for an unusable checkpoint.
    """
    if args.resume is None:
        return _start_from_recipe(args)
    path, note = find_checkpoint(args.resume)
    if note:
        logger.info(note)
    checkpoint = read_checkpoint(path)
    if checkpoint.kind == "last" and args.stage is None and args.recipe is None:
        return _resume_exactly(args, path, checkpoint)
    recipe_file = args.recipe or recipe_from_dict(checkpoint.recipe, str(path), args.overrides)
    return StartPoint(
        recipe_file=recipe_file,
        stage_names=_list_remaining_stages(args, recipe_file, checkpoint, path),
        run_dir=_choose_run_dir(args, recipe_file),
        rehash=args.rehash,
        checkpoint=checkpoint,
        checkpoint_path=path,
    )


def _start_from_recipe(args: TrainArgs) -> StartPoint:
    if args.recipe is None:
        raise RecipeError(
            "train: no recipe and no checkpoint; give one, as in `ftcli train configs/hotdog.yaml` or "
            "`ftcli train --stage all --resume best_loss.pt`"
        )
    stage_names = list_stage_names(args.recipe.recipe)
    if args.stage is not None:
        index = _find_stage_index(args.stage, stage_names, args.recipe.source.name)
        if index > 0:
            previous_stage = stage_names[index - 1]
            raise RecipeError(
                f"--stage {args.stage}: requires a checkpoint of stage {previous_stage}; add "
                f"--resume runs/{args.recipe.recipe.name}/stages/{previous_stage}.pt"
            )
        stage_names = (args.stage,)
    return StartPoint(
        recipe_file=args.recipe,
        stage_names=stage_names,
        run_dir=_choose_run_dir(args, args.recipe),
        rehash=args.rehash,
    )


def _resume_exactly(args: TrainArgs, path: Path, checkpoint: Checkpoint) -> StartPoint:
    refused_overrides = [text for text in args.overrides if text.partition("=")[0].strip() not in _RESUME_SAFE_KEYS]
    for option, value in (("--out", args.out), ("--set", " ".join(refused_overrides))):
        if value:
            raise RecipeError(
                f"{option} {value}: {path} resumes exactly, in its own run directory and with its own settings; omit "
                f"{option}, or add --stage to start a new run from its weights"
            )
    progress = checkpoint.progress
    assert progress is not None  # kind last always has it
    run_dir = RunDir(path.parent)
    if progress["history"]:
        stage_names = () if progress["finished"] else {metrics["stage"] for metrics in progress["history"]}
        run_dir.check_resumable(sorted(stage_names))
    return StartPoint(
        recipe_file=recipe_from_dict(checkpoint.recipe, str(path), args.overrides),
        stage_names=tuple(progress["stages"]),
        run_dir=run_dir,
        rehash=args.rehash,
        checkpoint=checkpoint,
        checkpoint_path=path,
        is_exact_resume=True,
    )


def _list_remaining_stages(
    args: TrainArgs, recipe_file: RecipeFile, checkpoint: Checkpoint, path: Path
) -> tuple[str, ...]:
    """Return the stages that a new run from a checkpoint trains: --stage, or those after the checkpoint's."""
    stage_names = list_stage_names(recipe_file.recipe)
    if args.stage is not None:
        _find_stage_index(args.stage, stage_names, recipe_file.source.name)
        return (args.stage,)
    if checkpoint.stage not in stage_names:
        return stage_names
    is_finished = checkpoint.progress is None or checkpoint.progress["finished"]
    first_index = stage_names.index(checkpoint.stage) + (1 if is_finished else 0)
    if first_index == len(stage_names):
        raise RecipeError(
            f"--resume {path}: is from {checkpoint.stage}, the last stage, so no stage is left to train; add "
            f"--stage {checkpoint.stage} to train it again from these weights, or evaluate it with "
            f"`ftcli evaluate {path}`"
        )
    return stage_names[first_index:]


def _find_stage_index(stage: str, stage_names: tuple[str, ...], source: str) -> int:
    if stage not in stage_names:
        raise RecipeError(f"--stage {stage}: {source} has no stage of this name; {suggest(stage, stage_names)}")
    return stage_names.index(stage)


def _choose_run_dir(args: TrainArgs, recipe_file: RecipeFile) -> RunDir:
    run_dir, note = choose_run_dir(args.out, recipe_file.recipe.name)
    if note:
        logger.info(note)
    return run_dir


def list_stage_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of a recipe's stages, in order."""
    return tuple(stage.name for stage in recipe.stages)
