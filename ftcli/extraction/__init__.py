"""Extraction of features to files, probes on them, and checkpoints with a probe as the head."""

from ftcli.extraction.args import ExtractArgs
from ftcli.extraction.extract import extract
from ftcli.extraction.sources import SourceArgs

__all__ = ["ExtractArgs", "SourceArgs", "extract"]
