"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from ftcli.results.base import Result
from ftcli.results.data import Fetched
from ftcli.results.drafting import Draft
from ftcli.results.estimation import MemoryParts, StageEstimate
from ftcli.results.evaluation import ClassRow, Evaluation, Mistake
from ftcli.results.network import (
    Crossing,
    HeadPlace,
    Inspection,
    Layer,
    ModelList,
    ModelRow,
    Preprocessing,
    StageSummary,
    WeightsEntry,
)
from ftcli.results.prediction import TOP, Failure, Guess, Prediction, Predictions
from ftcli.results.recipe import RecipeSchema
from ftcli.results.reporting import Progress, Reporter, Silent, tell_count, tell_duration
from ftcli.results.training import EpochRow, StageResult, TestResult, TrainResult
from ftcli.results.weights import LoadedWeights

__all__ = [
    "TOP",
    "ClassRow",
    "Crossing",
    "Draft",
    "EpochRow",
    "Evaluation",
    "Failure",
    "Fetched",
    "Guess",
    "HeadPlace",
    "Inspection",
    "Layer",
    "LoadedWeights",
    "MemoryParts",
    "Mistake",
    "ModelList",
    "ModelRow",
    "Prediction",
    "Predictions",
    "Preprocessing",
    "Progress",
    "RecipeSchema",
    "Reporter",
    "Result",
    "Silent",
    "StageEstimate",
    "StageResult",
    "StageSummary",
    "TestResult",
    "TrainResult",
    "WeightsEntry",
    "tell_count",
    "tell_duration",
]
