"""Results of the commands, and the Reporter protocol. Nothing here prints or imports torch."""

from ftcli.results.base import Result
from ftcli.results.comparison import ComparedRun, CompareResult, ConfigDifference, PairwiseTest
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
from ftcli.results.formatting import format_count, format_duration, format_percent, format_size
from ftcli.results.inspection import (
    BoundaryTensorInfo,
    HeadInfo,
    InspectResult,
    LayerInfo,
    LoadedWeights,
    ModelEntry,
    ModelListResult,
    Preprocessing,
    StageSummary,
    WeightsEntry,
)
from ftcli.results.metric_info import METRIC_INFO, MetricInfo, describe_confidence, describe_temperature_scaling
from ftcli.results.prediction import DEFAULT_TOP_K, ClassScore, Prediction, PredictionError, PredictResult
from ftcli.results.recipe import InitResult, SchemaResult
from ftcli.results.reporter import NullReporter, Progress, ProgressCounter, ProgressTask, Reporter
from ftcli.results.storage import CacheEntry, CacheResult, DownloadResult
from ftcli.results.training import (
    EpochMetrics,
    MemoryBreakdown,
    StageEstimate,
    StageResult,
    StageTimes,
    TestResult,
    TrainResult,
)

__all__ = [
    "DEFAULT_TOP_K",
    "METRIC_INFO",
    "BoundaryTensorInfo",
    "CacheEntry",
    "CacheResult",
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
    "ModelListResult",
    "NullReporter",
    "PairwiseTest",
    "PredictResult",
    "Prediction",
    "PredictionError",
    "Preprocessing",
    "ProbeScore",
    "Progress",
    "ProgressCounter",
    "ProgressTask",
    "ReliabilityBin",
    "Reporter",
    "Result",
    "SchemaResult",
    "StageEstimate",
    "StageResult",
    "StageSummary",
    "StageTimes",
    "TemperatureScaling",
    "TestResult",
    "Threshold",
    "TrainResult",
    "WeightsEntry",
    "describe_confidence",
    "describe_temperature_scaling",
    "format_count",
    "format_duration",
    "format_percent",
    "format_size",
]
