"""What the library hands back and reports: frozen dataclasses and the Reporter protocol. Nothing here prints."""

from ftcli.results.base import Result
from ftcli.results.caching import CacheListing, CacheEntry
from ftcli.results.comparison import ComparedRun, CompareResult, PairwiseTest, ConfigDifference
from ftcli.results.data import DownloadResult
from ftcli.results.drafting import InitResult
from ftcli.results.estimation import MemoryBreakdown, StageEstimate
from ftcli.results.evaluation import (
    ClassMetrics,
    ConfusedPair,
    EvaluateResult,
    EvaluatedImage,
    Metric,
    ReliabilityBin,
    TemperatureScaling,
    Threshold,
)
from ftcli.results.extraction import ExtractResult, FeatureLayer, ProbeScore
from ftcli.results.network import (
    BoundaryTensor,
    HeadInfo,
    InspectResult,
    LayerInfo,
    ModelList,
    ModelEntry,
    Preprocessing,
    StageSummary,
    WeightsEntry,
)
from ftcli.results.prediction import DEFAULT_TOP_K, PredictionError, ClassScore, Prediction, PredictResult
from ftcli.results.recipe import RecipeSchema
from ftcli.results.reporting import Progress, Reporter, NullReporter, format_count, format_duration, format_size
from ftcli.results.training import EpochMetrics, StageResult, StageTimes, TestResult, TrainResult
from ftcli.results.weights import LoadedWeights

__all__ = [
    "DEFAULT_TOP_K",
    "CacheListing",
    "ClassMetrics",
    "ComparedRun",
    "CompareResult",
    "ConfusedPair",
    "BoundaryTensor",
    "PairwiseTest",
    "InitResult",
    "EpochMetrics",
    "EvaluateResult",
    "EvaluatedImage",
    "ExtractResult",
    "PredictionError",
    "FeatureLayer",
    "DownloadResult",
    "Metric",
    "ClassScore",
    "HeadInfo",
    "InspectResult",
    "LayerInfo",
    "LoadedWeights",
    "MemoryBreakdown",
    "ModelList",
    "ModelEntry",
    "Prediction",
    "PredictResult",
    "Preprocessing",
    "ProbeScore",
    "Progress",
    "RecipeSchema",
    "ReliabilityBin",
    "Reporter",
    "Result",
    "TemperatureScaling",
    "ConfigDifference",
    "CacheEntry",
    "NullReporter",
    "StageEstimate",
    "StageResult",
    "StageSummary",
    "StageTimes",
    "TestResult",
    "Threshold",
    "TrainResult",
    "WeightsEntry",
    "format_count",
    "format_duration",
    "format_size",
]
