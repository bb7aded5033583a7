"""Inspection of models, recipes and checkpoints."""

from ftcli.inspection.overview import PlotArgs, inspect

__all__ = ["PlotArgs", "inspect"]
