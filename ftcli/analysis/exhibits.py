"""What `ftcli inspect` tells beyond an inspection, where it is asked for: pictures and an estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ftcli.analysis.augmentation import draw_augmentation
from ftcli.analysis.estimation import estimate_training
from ftcli.analysis.features import draw_features
from ftcli.errors import RecipeError
from ftcli.recipe.loading import Document
from ftcli.recipe.schema import Backbone
from ftcli.results import Inspection, ModelList, Reporter


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be added: `augment` is the file for the picture of augmented images; `features` are an image and the
    file for the picture of what the layers of `layers` (or chosen ones) make of it; `estimate` is of time and memory.
    """

    augment: Path | None = None
    features: tuple[Path, Path] | None = None
    layers: tuple[str, ...] = ()
    estimate: bool = False


def add_exhibits(
    found: Inspection | ModelList,
    source: str | Document | None,
    wish: Wish,
    pretrained: Backbone | None,
    reporter: Reporter,
) -> Inspection | ModelList:
    """The inspection of `source` with what was wished for; as it is where that is nothing.

    `pretrained` are the weights that a model's name goes with. Raises what drawing and estimating raise, and
    RecipeError where features are to be drawn of a list of models.
    """
    if wish.features is not None and (source is None or isinstance(found, ModelList)):
        raise RecipeError("--show-features: needs one network; give the name of a model, a recipe or a checkpoint")
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
    estimate = estimate_training(source, reporter) if wish.estimate and isinstance(source, Document) else None
    return replace(found, pictures=tuple(pictures), estimate=estimate)
