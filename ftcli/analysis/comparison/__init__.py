"""Runs beside one another: `compare`."""

from ftcli.analysis.comparison.summary import CompareArgs, compare

__all__ = ["CompareArgs", "compare"]
