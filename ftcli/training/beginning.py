"""Where a training begins: at a recipe, at a checkpoint's weights, or exactly where a run stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.errors import RecipeError, suggest
from ftcli.recipe.loading import Document, revive_recipe
from ftcli.recipe.schema import Recipe
from ftcli.results import Reporter
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint
from ftcli.runs.folder import RunFolder, choose_folder, find_checkpoint

_HARMLESS = ("data.on_corrupt_image", "data.num_workers")
"""Settings that an exact resume may change: what is computed from a good image does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user asked of `ftcli train`. `overrides` are those for the recipe of a checkpoint; a recipe that is
    given has taken them already. `verify` has every image hashed again, lest something be kept of an older one."""

    recipe: Document | None = None
    stage: str | None = None
    resume: Path | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    device: str
    verify: bool = False


@dataclass(frozen=True)
class Beginning:
    """`stages` are the names of those that the run trains. `checkpoint` gives the weights where there is one; with
    `exact` its progress too, and `folder` is then its own."""

    document: Document
    stages: tuple[str, ...]
    folder: RunFolder
    checkpoint: Checkpoint | None = None
    source: Path | None = None
    exact: bool = False
    verify: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the run that would go on has nothing left to do."""
        return self.exact and self.checkpoint is not None and bool((self.checkpoint.progress or {})["finished"])


def choose_beginning(order: Order, reporter: Reporter) -> Beginning:
    """Decide what an order comes to, and say so. Nothing is written.

    Raises RecipeError for an order that cannot be carried out, CheckpointError for a checkpoint that cannot be used.
    """
    if order.resume is None:
        return _begin_recipe(order, reporter)
    path, note = find_checkpoint(order.resume)
    if note:
        reporter.say(note)
    checkpoint = read_checkpoint(path)
    if checkpoint.kind == "last" and order.stage is None and order.recipe is None:
        return _go_on(order, path, checkpoint)
    document = order.recipe or revive_recipe(checkpoint.recipe, str(path), order.overrides)
    stages = _stages_after(order, document, checkpoint, path)
    folder = _choose_folder(order, document, reporter)
    return Beginning(document, stages, folder, checkpoint, path)


def _begin_recipe(order: Order, reporter: Reporter) -> Beginning:
    if order.recipe is None:
        raise RecipeError(
            "train: neither a recipe nor a checkpoint is given; give one, as in `ftcli train configs/hotdog.yaml` or "
            "`ftcli train --stage all --resume best_loss.pt`"
        )
    document = order.recipe
    names = list_stages(document.recipe)
    if order.stage is None:
        return Beginning(document, names, _choose_folder(order, document, reporter))
    index = _find_stage(order.stage, names, document.source)
    if index > 0:
        raise RecipeError(
            f"--stage {order.stage}: begins from the checkpoint of stage {names[index - 1]}, and none is given; add "
            f"--resume runs/{document.recipe.name}/stages/{names[index - 1]}.pt"
        )
    return Beginning(document, (order.stage,), _choose_folder(order, document, reporter))


def _go_on(order: Order, path: Path, checkpoint: Checkpoint) -> Beginning:
    changes = [text for text in order.overrides if text.partition("=")[0].strip() not in _HARMLESS]
    for option, value in (("--out", order.out), ("--set", " ".join(changes))):
        if value:
            raise RecipeError(
                f"{option} {value}: {path} goes on exactly where it stopped, in its own folder and with its own "
                "settings; add --stage to begin a new run from its weights"
            )
    assert checkpoint.progress is not None  # kind last always has it
    document = revive_recipe(checkpoint.recipe, str(path), order.overrides)
    folder = RunFolder(path.parent)
    return Beginning(document, tuple(checkpoint.progress["stages"]), folder, checkpoint, path, exact=True)


def _stages_after(order: Order, document: Document, checkpoint: Checkpoint, path: Path) -> tuple[str, ...]:
    names = list_stages(document.recipe)
    if order.stage is not None:
        _find_stage(order.stage, names, document.source)
        return (order.stage,)
    if checkpoint.stage not in names:
        return names
    finished = checkpoint.progress is None or checkpoint.progress["finished"]
    first = names.index(checkpoint.stage) + (1 if finished else 0)
    if first == len(names):
        raise RecipeError(
            f"--resume {path}: comes from {checkpoint.stage}, the last stage, so no stage is left to train; add "
            f"--stage {checkpoint.stage} to train it once more from these weights, or evaluate it with "
            f"`ftcli evaluate {path}`"
        )
    return names[first:]


def _find_stage(stage: str, names: tuple[str, ...], source: str) -> int:
    if stage not in names:
        raise RecipeError(f"--stage {stage}: {source} has no stage of this name; {suggest(stage, names)}")
    return names.index(stage)


def _choose_folder(order: Order, document: Document, reporter: Reporter) -> RunFolder:
    folder, note = choose_folder(order.out, document.recipe.name)
    if note:
        reporter.say(note)
    return folder


def list_stages(recipe: Recipe) -> tuple[str, ...]:
    """The names of a recipe's stages, in order."""
    return tuple(stage.name for stage in recipe.stages)
