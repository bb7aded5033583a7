"""The pictures that `ftcli inspect` draws where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.analysis.inspection.augmentation import draw_augmentation
from ftcli.analysis.inspection.features import draw_features
from ftcli.errors import RecipeError
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Backbone
from ftcli.results import Inspection, ModelList, Reporter


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be drawn: `augment` is the file for the picture of augmented images; `features` are an image and the
    file for the picture of what the layers of `layers` (or chosen ones) make of it."""

    augment: Path | None = None
    features: tuple[Path, Path] | None = None
    layers: tuple[str, ...] = ()


def add_exhibits(
    found: Inspection | ModelList,
    source: str | Document | None,
    wish: Wish,
    pretrained: Backbone | None,
    reporter: Reporter,
) -> Inspection | ModelList:
    """Draw what was wished for, and tell where in the inspection of `source`; as it is where that is nothing.

    `pretrained` are the weights that a model's name goes with. Raises what drawing raises, and RecipeError where
    features are to be drawn of a list of models.
    """
    if wish.features is not None and (source is None or isinstance(found, ModelList)):
        raise RecipeError("--plot-activations: needs one network; give the name of a model, a recipe or a checkpoint")
    if isinstance(found, ModelList):
        return found
    pictures: list[Path] = []
    if wish.augment is not None and isinstance(source, Document):
        draw_augmentation(source, wish.augment, reporter)
        pictures.append(wish.augment)
    if wish.features is not None and source is not None:
        image, target = wish.features
        draw_features(pretrained or source, image, target, wish.layers, reporter)
        pictures.append(target)
    return replace(found, pictures=tuple(pictures))
