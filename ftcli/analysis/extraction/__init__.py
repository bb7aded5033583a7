"""What layers give for images, kept and probed: `extract`."""

from ftcli.analysis.extraction.course import extract
from ftcli.analysis.extraction.sources import SourceArgs
from ftcli.analysis.extraction.wishes import ExtractArgs

__all__ = ["SourceArgs", "ExtractArgs", "extract"]
