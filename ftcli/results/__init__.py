"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from ftcli.results.base import Result
from ftcli.results.data import Fetched
from ftcli.results.evaluation import ClassRow, Evaluation, Mistake
from ftcli.results.network import (
    Crossing,
    HeadPlace,
    Inspection,
    Layer,
    ModelList,
    Preprocessing,
    StageSummary,
    WeightsEntry,
)
from ftcli.results.reporting import Progress, Reporter, Silent, tell_duration
from ftcli.results.training import EpochRow, StageResult, TestResult, TrainResult

__all__ = [
    "ClassRow",
    "Crossing",
    "EpochRow",
    "Evaluation",
    "Fetched",
    "HeadPlace",
    "Inspection",
    "Layer",
    "Mistake",
    "ModelList",
    "Preprocessing",
    "Progress",
    "Reporter",
    "Result",
    "Silent",
    "StageResult",
    "StageSummary",
    "TestResult",
    "TrainResult",
    "WeightsEntry",
    "tell_duration",
]
