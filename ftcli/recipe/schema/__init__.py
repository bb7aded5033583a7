"""What a recipe may say. Every default of ftcli stands here, once; the text under a field is its description."""

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
from ftcli.recipe.schema.parts import RecipeModel
from ftcli.recipe.schema.recipe import CacheSettings, EarlyStopping, Recipe, HeadFitStage, Stage, FreezeThrough

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
    "Head",
    "Normalization",
    "OneCycle",
    "Optimizer",
    "RecipeModel",
    "Preset",
    "RandAugment",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Recipe",
    "Schedule",
    "Sgd",
    "HeadFitStage",
    "Stage",
    "StepDecay",
    "FreezeThrough",
    "Transform",
    "Transforms",
]
