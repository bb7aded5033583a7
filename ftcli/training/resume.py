"""Where a training begins: at a recipe, at a checkpoint's weights, or exactly where a run stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.loading import RecipeFile, recipe_from_dict
from ftcli.recipe.schema import Recipe
from ftcli.results import Reporter
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.run_dir import RunDir, choose_run_dir, find_checkpoint

_RESUME_SAFE_KEYS = ("data.on_corrupt_image", "data.num_workers")
"""Settings that an exact resume may change: what is computed from a good image does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """What the user asked of `ftcli train`. `overrides` are those for the recipe of a checkpoint; a recipe that is
    given has taken them already. `verify` has every image hashed again, lest something be kept of an older one."""

    recipe: RecipeFile | None = None
    stage: str | None = None
    resume: Path | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    device: str
    rehash: bool = False


@dataclass(frozen=True)
class StartPoint:
    """`stages` are the names of those that the run trains. `checkpoint` gives the weights where there is one; with
    `exact` its progress too, and `folder` is then its own."""

    recipe_file: RecipeFile
    stage_names: tuple[str, ...]
    folder: RunDir
    checkpoint: Checkpoint | None = None
    checkpoint_path: Path | None = None
    is_exact_resume: bool = False
    rehash: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the run that would go on has nothing left to do."""
        return (
            self.is_exact_resume and self.checkpoint is not None and bool((self.checkpoint.progress or {})["finished"])
        )


def resolve_start(args: TrainArgs, reporter: Reporter) -> StartPoint:
    """Decide what an order comes to, and say so. Nothing is written.

    Raises RecipeError for an order that cannot be carried out, CheckpointError for a checkpoint that cannot be used.
    """
    if args.resume is None:
        return _start_from_recipe(args, reporter)
    path, note = find_checkpoint(args.resume)
    if note:
        reporter.info(note)
    checkpoint = read_checkpoint(path)
    if checkpoint.kind == "last" and args.stage is None and args.recipe is None:
        return _resume_exactly(args, path, checkpoint)
    recipe_file = args.recipe or recipe_from_dict(checkpoint.recipe, str(path), args.overrides)
    stage_names = _list_remaining_stages(args, recipe_file, checkpoint, path)
    folder = _choose_folder(args, recipe_file, reporter)
    return StartPoint(recipe_file, stage_names, folder, checkpoint, path)


def _start_from_recipe(args: TrainArgs, reporter: Reporter) -> StartPoint:
    if args.recipe is None:
        raise RecipeError(
            "train: neither a recipe nor a checkpoint is given; give one, as in `ftcli train configs/hotdog.yaml` or "
            "`ftcli train --stage all --resume best_loss.pt`"
        )
    recipe_file = args.recipe
    stage_names = list_stage_names(recipe_file.recipe)
    if args.stage is None:
        return StartPoint(recipe_file, stage_names, _choose_folder(args, recipe_file, reporter))
    index = _find_stage_index(args.stage, stage_names, recipe_file.source.name)
    if index > 0:
        raise RecipeError(
            f"--stage {args.stage}: begins from the checkpoint of stage {stage_names[index - 1]}, and none is given; add "
            f"--resume runs/{recipe_file.recipe.name}/stages/{stage_names[index - 1]}.pt"
        )
    return StartPoint(recipe_file, (args.stage,), _choose_folder(args, recipe_file, reporter))


def _resume_exactly(args: TrainArgs, path: Path, checkpoint: Checkpoint) -> StartPoint:
    refused_overrides = [text for text in args.overrides if text.partition("=")[0].strip() not in _RESUME_SAFE_KEYS]
    for option, value in (("--out", args.out), ("--set", " ".join(refused_overrides))):
        if value:
            raise RecipeError(
                f"{option} {value}: {path} goes on exactly where it stopped, in its own folder and with its own "
                "settings; add --stage to begin a new run from its weights"
            )
    assert checkpoint.progress is not None  # kind last always has it
    recipe_file = recipe_from_dict(checkpoint.recipe, str(path), args.overrides)
    folder = RunDir(path.parent)
    return StartPoint(recipe_file, tuple(checkpoint.progress["stages"]), folder, checkpoint, path, is_exact_resume=True)


def _list_remaining_stages(
    args: TrainArgs, recipe_file: RecipeFile, checkpoint: Checkpoint, path: Path
) -> tuple[str, ...]:
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
            f"--resume {path}: comes from {checkpoint.stage}, the last stage, so no stage is left to train; add "
            f"--stage {checkpoint.stage} to train it once more from these weights, or evaluate it with "
            f"`ftcli evaluate {path}`"
        )
    return stage_names[first_index:]


def _find_stage_index(stage: str, stage_names: tuple[str, ...], source: str) -> int:
    if stage not in stage_names:
        raise RecipeError(f"--stage {stage}: {source} has no stage of this name; {suggest(stage, stage_names)}")
    return stage_names.index(stage)


def _choose_folder(args: TrainArgs, recipe_file: RecipeFile, reporter: Reporter) -> RunDir:
    folder, note = choose_run_dir(args.out, recipe_file.recipe.name)
    if note:
        reporter.info(note)
    return folder


def list_stage_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of a recipe's stages, in order."""
    return tuple(stage.name for stage in recipe.stages)
