"""Schema of recipes, with every default; the text under a field is its description."""

from ftcli.recipe.schema.augmentation import (
    ColorJitter,
    Preset,
    RandAugment,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    Transform,
    Transforms,
)
from ftcli.recipe.schema.data import Data, Normalization
from ftcli.recipe.schema.network import Backbone, Head
from ftcli.recipe.schema.optimization import (
    Adam,
    AdamW,
    Constant,
    Cosine,
    OneCycle,
    Optimizer,
    Schedule,
    Sgd,
    StepDecay,
)
from ftcli.recipe.schema.recipe import CacheSettings, EarlyStopping, FreezeThrough, HeadFitStage, Recipe, Stage
from ftcli.recipe.schema.types import RecipeModel

__all__ = [
    "Adam",
    "AdamW",
    "Backbone",
    "CacheSettings",
    "ColorJitter",
    "Constant",
    "Cosine",
    "Data",
    "EarlyStopping",
    "FreezeThrough",
    "Head",
    "HeadFitStage",
    "Normalization",
    "OneCycle",
    "Optimizer",
    "Preset",
    "RandAugment",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Recipe",
    "RecipeModel",
    "Schedule",
    "Sgd",
    "Stage",
    "StepDecay",
    "Transform",
    "Transforms",
]
