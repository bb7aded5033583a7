"""Runs beside one another: `compare`."""

from ftcli.analysis.comparison.summary import Wish, compare

__all__ = ["Wish", "compare"]
