"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from ftcli.results.base import Result
from ftcli.results.caching import CacheListing, Shelf
from ftcli.results.comparison import ComparedRun, Comparison, Difference, Setting
from ftcli.results.data import Fetched
from ftcli.results.drafting import Draft
from ftcli.results.estimation import MemoryParts, StageEstimate
from ftcli.results.evaluation import (
    ClassRow,
    Confusion,
    Evaluation,
    Example,
    Figure,
    ReliabilityBin,
    Scaling,
    Threshold,
)
from ftcli.results.extraction import Extraction, FeatureLayer, ProbeScore
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
from ftcli.results.reporting import Progress, Reporter, Silent, tell_count, tell_duration, tell_size
from ftcli.results.training import EpochRow, StageResult, StageTimes, TestResult, TrainResult
from ftcli.results.weights import LoadedWeights

__all__ = [
    "TOP",
    "CacheListing",
    "ClassRow",
    "ComparedRun",
    "Comparison",
    "Confusion",
    "Crossing",
    "Difference",
    "Draft",
    "EpochRow",
    "Evaluation",
    "Example",
    "Extraction",
    "Failure",
    "FeatureLayer",
    "Fetched",
    "Figure",
    "Guess",
    "HeadPlace",
    "Inspection",
    "Layer",
    "LoadedWeights",
    "MemoryParts",
    "ModelList",
    "ModelRow",
    "Prediction",
    "Predictions",
    "Preprocessing",
    "ProbeScore",
    "Progress",
    "RecipeSchema",
    "ReliabilityBin",
    "Reporter",
    "Result",
    "Scaling",
    "Setting",
    "Shelf",
    "Silent",
    "StageEstimate",
    "StageResult",
    "StageSummary",
    "StageTimes",
    "TestResult",
    "Threshold",
    "TrainResult",
    "WeightsEntry",
    "tell_count",
    "tell_duration",
    "tell_size",
]
