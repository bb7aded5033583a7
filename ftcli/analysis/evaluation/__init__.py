"""How good a checkpoint is: `evaluate`."""

from ftcli.analysis.evaluation.measurement import Question
from ftcli.analysis.evaluation.summary import evaluate
from ftcli.analysis.evaluation.wishes import Wish

__all__ = ["Question", "Wish", "evaluate"]
