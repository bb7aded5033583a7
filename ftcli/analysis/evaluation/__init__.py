"""How good a checkpoint is: `evaluate`."""

from ftcli.analysis.evaluation.measurement import EvaluateArgs
from ftcli.analysis.evaluation.summary import evaluate
from ftcli.analysis.evaluation.wishes import EvaluateOptions

__all__ = ["EvaluateArgs", "EvaluateOptions", "evaluate"]
