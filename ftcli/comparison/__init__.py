"""Runs beside one another: `compare`."""

from ftcli.comparison.compare import CompareArgs, compare

__all__ = ["CompareArgs", "compare"]
