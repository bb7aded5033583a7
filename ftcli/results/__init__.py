"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from ftcli.results.advice import InitResult
from ftcli.results.base import Result
from ftcli.results.caching import CacheEntry, CacheListing
from ftcli.results.comparison import ComparedRun, CompareResult, ConfigDifference, PairwiseTest
from ftcli.results.data import DownloadResult
from ftcli.results.estimation import MemoryBreakdown, StageEstimate
from ftcli.results.evaluation import (
    ClassMetrics,
    ConfusedPair,
    EvaluatedImage,
    EvaluateResult,
    Metric,
    ReliabilityBin,
    TemperatureScaling,
    Threshold,
)
from ftcli.results.extraction import ExtractResult, FeatureLayer, ProbeScore
from ftcli.results.inspection import (
    BoundaryTensor,
    HeadInfo,
    InspectResult,
    LayerInfo,
    ModelEntry,
    ModelList,
    Preprocessing,
    StageSummary,
    WeightsEntry,
)
from ftcli.results.metric_info import METRIC_INFO, MetricInfo
from ftcli.results.prediction import DEFAULT_TOP_K, ClassScore, Prediction, PredictionError, PredictResult
from ftcli.results.recipe import RecipeSchema
from ftcli.results.reporting import NullReporter, Progress, Reporter, format_count, format_duration, format_size
from ftcli.results.training import EpochMetrics, StageResult, StageTimes, TestResult, TrainResult
from ftcli.results.weights import LoadedWeights

__all__ = [
    "DEFAULT_TOP_K",
    "METRIC_INFO",
    "BoundaryTensor",
    "CacheEntry",
    "CacheListing",
    "ClassMetrics",
    "ClassScore",
    "CompareResult",
    "ComparedRun",
    "ConfigDifference",
    "ConfusedPair",
    "DownloadResult",
    "EpochMetrics",
    "EvaluateResult",
    "EvaluatedImage",
    "ExtractResult",
    "FeatureLayer",
    "HeadInfo",
    "InitResult",
    "InspectResult",
    "LayerInfo",
    "LoadedWeights",
    "MemoryBreakdown",
    "Metric",
    "MetricInfo",
    "ModelEntry",
    "ModelList",
    "NullReporter",
    "PairwiseTest",
    "PredictResult",
    "Prediction",
    "PredictionError",
    "Preprocessing",
    "ProbeScore",
    "Progress",
    "RecipeSchema",
    "ReliabilityBin",
    "Reporter",
    "Result",
    "StageEstimate",
    "StageResult",
    "StageSummary",
    "StageTimes",
    "TemperatureScaling",
    "TestResult",
    "Threshold",
    "TrainResult",
    "WeightsEntry",
    "format_count",
    "format_duration",
    "format_size",
]
